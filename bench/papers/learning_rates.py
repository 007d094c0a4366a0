"""Loss of a Multiscreen model and of a Llama-like one by learning rate (arXiv 2604.01178: loss, and stability to 2^0).

python -m bench.papers.learning_rates TEXTS... --state FOLDER [--scale cpu] [--seeds 3] [--out FILE] [--picture FILE]

Both models have as many parameters and are trained on the same rows with AdamW (0.9, 0.95) and a constant rate after a
warm-up: Multiscreen without decay and clipping, as its paper says, the Llama-like model with both, as is usual. The
loss is that of held-out text, in windows of the trained length, and by position in passages of 8 times that length. A
run whose loss or gradient is not finite has diverged. An interrupted run is continued by the same command.

--models and --exponents choose what is trained; with --every, a row also has the loss during the training, by tokens.
"""

from __future__ import annotations

import math
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch

from bench.harness import report
from bench.papers.loss_by_position import losses
from bench.papers.pairs import KINDS, NAMES, Trained, parameters_of, trained
from bench.papers.runs import Scale, arguments, device_of, kept, scale_of, spread
from bench.papers.texts import Texts
from surgery.data import Row

EXPONENTS = (-10, -8, -6, -4, -2, 0)
TIMES = (1, 2, 4, 8)
OWN = {"minutes": {"steps": 200, "psi": 4}}  # 36 trainings


def passages_of(texts: Texts, scale: Scale) -> list[list[int]]:
    """Held-out passages of the greatest length that is measured."""
    return texts.passages(TIMES[-1] * scale.length, min(scale.trials, 32))


def windows_of(texts: Texts, scale: Scale) -> list[list[int]]:
    """The same passages, in windows of the trained length."""
    starts = range(0, TIMES[-1] * scale.length, scale.length)
    return [passage[start : start + scale.length] for passage in passages_of(texts, scale) for start in starts]


def measure(ended: Trained, texts: Texts, scale: Scale) -> dict[str, Any]:
    """Loss in windows of the trained length, mean loss of the positions between two of ``TIMES``, and the curve."""
    model, curve = ended
    if model is None:
        return {"diverged": True}
    inside = torch.stack([losses(model, window) for window in windows_of(texts, scale)]).mean()
    beyond = torch.stack([losses(model, passage) for passage in passages_of(texts, scale)]).mean(0)
    parts = zip((0, *TIMES), TIMES, strict=False)
    means = [float(beyond[first * scale.length : last * scale.length].mean()) for first, last in parts]
    return {"diverged": not math.isfinite(inside), "loss": float(inside), "beyond": means, "curve": curve}


def rows_of(units: dict[tuple[str, int], list[dict[str, Any]]], parameters: dict[str, int]) -> list[dict[str, Any]]:
    """One row for each model and rate; the losses are over the seeds that did not diverge."""
    table = []
    for (name, exponent), seeds in units.items():
        ended = [one for one in seeds if not one["diverged"]]
        row: dict[str, Any] = {"model": name, "parameters": parameters[name], "rate": f"2^{exponent}"}
        row |= {"seeds": len(seeds), "diverged": len(seeds) - len(ended)}
        row |= spread([one["loss"] for one in ended]) if ended else dict.fromkeys(("mean", "least", "greatest"))
        for number, last in enumerate(TIMES):
            values = [one["beyond"][number] for one in ended]
            row[f"to {last}x"] = sum(values) / len(values) if values else None
        curves = [one["curve"] for one in ended if one.get("curve")]
        for points in zip(*curves, strict=True):
            row[f"after {points[0]['tokens']} tokens"] = sum(point["loss"] for point in points) / len(points)
        table.append(row)
    return table


def draw_picture(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw the loss over the learning rate, with the range over seeds."""
    from surgery.reporting.theme import LIGHT, drawn_in, grid, new_figure, to_png

    with drawn_in(LIGHT):
        figure = new_figure(height=3.4)
        axes = figure.subplots()
        grid(axes, LIGHT)
        for number, name in enumerate(dict.fromkeys(row["model"] for row in rows)):
            own = [row for row in rows if row["model"] == name and row["mean"] is not None]
            rates = [2.0 ** int(row["rate"].removeprefix("2^")) for row in own]
            colour = LIGHT.series[number % len(LIGHT.series)]
            axes.plot(rates, [row["mean"] for row in own], marker="osdv^"[number], color=colour, label=name)
            low, high = ([row[key] for row in own] for key in ("least", "greatest"))
            axes.fill_between(rates, low, high, color=colour, alpha=0.15, linewidth=0)
        axes.set_xscale("log", base=2)
        names = list(dict.fromkeys(row["rate"] for row in rows))
        axes.set_xticks([2.0 ** int(name.removeprefix("2^")) for name in names], names)
        axes.set_xlabel("learning rate")
        axes.set_ylabel("loss on held-out text, nats per token")
        axes.legend()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(to_png(figure, LIGHT))


def main(given: list[str] | None = None) -> list[dict[str, Any]]:
    """Train and measure what is left; report what is finished."""
    parser = arguments(__doc__)
    parser.add_argument("texts", nargs="+")
    parser.add_argument("--exponents", type=int, nargs="+", default=EXPONENTS, help="learning rates, as powers of 2")
    parser.add_argument("--models", nargs="+", choices=KINDS, default=NAMES)
    parser.add_argument(
        "--every", type=int, default=0, help="steps between measurements of the loss; 0: only at the end"
    )
    options = parser.parse_args(given)
    scale, size = scale_of(options, OWN)
    texts = Texts(options.texts, options.state, scale.vocabulary)
    parameters = {name: parameters_of(name, scale, texts.vocabulary) for name in options.models}
    held_out = [Row((tuple(window),)) for window in windows_of(texts, scale)]
    units: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for seed in range(options.seeds):
        rows = texts.rows(scale, scale.steps, seed)
        for exponent, name in product(options.exponents, options.models):
            folder = options.state / f"rates-{size}-psi{scale.psi}" / str(seed) / f"{name}{exponent}"
            run = partial(trained, name, scale, rows, texts.vocabulary, folder, lr=2.0**exponent, seed=seed)
            run = partial(run, held_out=held_out, every=options.every)
            found = kept(folder / "loss.json", lambda run=run: measure(run(device=device_of(options)), texts, scale))
            if options.every and not found["diverged"] and not found.get("curve"):
                raise SystemExit(f"{folder} was finished without --every; choose another --state")
            units.setdefault((name, exponent), []).append(found)
            print(f"seed {seed} {name} 2^{exponent}: {found}", flush=True)
    table = rows_of(units, parameters)
    report("papers/learning_rates", table, options.out)
    if options.picture is not None:
        draw_picture(table, options.picture)
    return table


if __name__ == "__main__":
    main()
