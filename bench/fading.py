"""Attention fading: the greatest weight by n, softmax against SSMax, on synthetic scores and on a real model.

python -m bench.fading MODEL --text TEXTS [--trained CHECKPOINT] [--length 4096] [--out docs/results/data/fading.json]
    [--picture docs/results/images/fading.png]

Left, after Figure 1 of arXiv 2501.19399: one score of +3 among scores of -2. Right, the model: the greatest weight of
each query, as the mean over all layers and heads, of the source, of the untrained start of `paper`, and of a checkpoint
that was trained from this start.
"""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

import surgery
from bench.harness import arguments, report
from surgery.reporting.theme import LIGHT, drawn_in, grid, new_figure, to_png

SCALE = 0.43
LINES = ((LIGHT.base, "s", "--"), (LIGHT.model, "o", "-"), (LIGHT.series[2], "^", ":"))


def greatest(n: int, multiplier: float) -> float:
    """The greatest softmax weight for one score of +3 among n - 1 scores of -2, all times a multiplier."""
    return 1 / (1 + (n - 1) * math.exp(-5 * multiplier))


def synthetic() -> list[dict[str, Any]]:
    rows = []
    for n in (2**power for power in range(17)):
        values = {"softmax": greatest(n, 1.0), f"SSMax, s = {SCALE}": greatest(n, SCALE * math.log(n))}
        rows += [{"input": "made up", "attention": name, "n": n, "greatest": value} for name, value in values.items()]
    return rows


def measured(model: Path, trained: Path | None, texts: list[str], length: int) -> list[dict[str, Any]]:
    part = {"kind": "attention", "length": length, "documents": 1}
    with tempfile.TemporaryDirectory() as folder:
        converted = surgery.convert(model, "ssmax", form="paper", output=Path(folder) / "paper", mode="link").output
        models = {"softmax": model, "SSMax, paper's start": converted}
        if trained is not None:
            models["SSMax, trained"] = trained
        result = surgery.evaluate(
            list(models.values()), text=texts, suite={"name": "fading", "parts": [part]}, on_event=_print_event
        )
    rows = []
    for own, name in zip(result.section("attention").results, models, strict=True):
        for point in own.by_n:
            rows.append(
                {
                    "input": "model",
                    "attention": name,
                    "n": round(math.sqrt(point.first * point.last)),
                    "greatest": point.greatest,
                    "entropy": point.entropy,
                }
            )
    return rows


def draw(rows: list[dict[str, Any]], path: Path, title: str) -> None:
    """Draw both pictures side by side, as a PNG."""
    with drawn_in(LIGHT):
        figure = new_figure(height=3.4)
        for axes, kind, words in zip(
            figure.subplots(1, 2, sharey=True),
            ("made up", "model"),
            ("one score of +3 among scores of -2", title),
            strict=True,
        ):
            grid(axes, LIGHT)
            names = list(dict.fromkeys(row["attention"] for row in rows if row["input"] == kind))
            for name, (colour, marker, dashes) in zip(names, LINES, strict=False):
                own = [row for row in rows if row["input"] == kind and row["attention"] == name]
                axes.plot(
                    [row["n"] for row in own],
                    [row["greatest"] for row in own],
                    color=colour,
                    marker=marker,
                    linestyle=dashes,
                    markersize=4,
                    markerfacecolor=colour if dashes == "-" else "none",
                    label=name,
                )
            axes.set_xscale("log", base=2)
            last = max(row["n"] for row in rows if row["input"] == kind)
            ticks = [2**power for power in range(0, int(np.log2(last)) + 1, 4)]
            axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
            axes.set_ylim(0, 1.03)
            axes.set_title(words)
            axes.set_xlabel("n, keys that the query may attend to")
            axes.legend()
        figure.axes[0].set_ylabel("greatest weight")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(to_png(figure, LIGHT))
    print(f"wrote {path}")


def _print_event(event: dict[str, Any]) -> None:
    if event["event"] in ("loading", "unit"):
        print(event["event"], event["model"], flush=True)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--text", nargs="+", required=True)
    parser.add_argument("--trained", type=Path, help="an SSMax checkpoint of the model")
    parser.add_argument("--length", type=int, default=4096)
    parser.add_argument("--picture", type=Path)
    options = parser.parse_args()
    rows = [*synthetic(), *measured(options.model, options.trained, options.text, options.length)]
    report("fading", [{"entropy": None, **row} for row in rows], options.out)
    if options.picture is not None:
        draw(rows, options.picture, f"{options.model.name}, mean over heads")


if __name__ == "__main__":
    main()
