"""Retrieval beyond the trained length: the six models of the paper of SSMax on made-up recall (arXiv 2501.19399).

python -m bench.papers.retrieval --state FOLDER [--scale cpu] [--seeds 3] [--out FILE.json] [--picture FILE.png]

A row has facts at random places among filler, then questions; a fact is one token that stands for a key and its value,
a question is the key, and the model gives the value. So attention finds the fact by its content alone, and no layer has
to find the token before another. The trained rows have a quarter to all of the trained length. Measured at 1, 2, 4, 8
and 16 times the trained length, with RoPE's base as trained and times 50, as in the paper. An interrupted run is
continued by the same command.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch

from bench.harness import report
from bench.papers.configurations import NAMES, Trainer
from bench.papers.runs import Scale, arguments, device_of, kept, load, raise_theta, scale_of, spread
from surgery.data import Row

KEYS, VALUES, FILLERS = 16, 8, 32
FACT = KEYS + VALUES  # token ids: keys, values, a fact for each pair of both, filler
FILLER = FACT + KEYS * VALUES
VOCABULARY = FILLER + FILLERS
FACTS = 4  # of a row, and as many questions of two tokens each: key and value
TIMES = (1, 2, 4, 8, 16)
THETA_FACTORS = (1, 50)


def recall_row(length: int, draw: random.Random) -> tuple[list[int], list[bool]]:
    """Tokens of one row, and which of them are answers.

    Args:
        length: tokens of the row.
        draw: the random source.
    """
    facts = [(key, draw.randrange(VALUES)) for key in draw.sample(range(KEYS), FACTS)]
    tokens = [draw.randrange(FILLER, VOCABULARY) for _ in range(length - 2 * FACTS)]
    for place, (key, value) in zip(draw.sample(range(len(tokens)), FACTS), facts, strict=True):
        tokens[place] = FACT + key * VALUES + value
    answers = [False] * len(tokens) + [False, True] * FACTS
    for key, value in draw.sample(facts, FACTS):
        tokens += [key, KEYS + value]
    return tokens, answers


def training_rows(scale: Scale, steps: int, seed: int) -> list[Row]:
    """One row for each sequence of the training."""
    draw = random.Random(f"training/{seed}")
    rows = []
    for _ in range(steps * scale.sequences):
        tokens, answers = recall_row(draw.randint(max(4 * FACTS, scale.length // 4), scale.length), draw)
        rows.append(Row((tuple(tokens),), (0,), (tuple(answers),)))
    return rows


@torch.no_grad()
def accuracy(model: Any, length: int, trials: int, seed: int, at_once: int = 4096) -> float:
    """Share of right answers at a length, in ``trials`` rows."""
    draw = random.Random(f"test/{seed}/{length}")
    right = total = 0
    batch = max(1, min(trials, at_once // length))
    for first in range(0, trials, batch):
        rows = [recall_row(length, draw) for _ in range(min(batch, trials - first))]
        tokens = torch.tensor([row for row, _ in rows], device=model.device)
        answers = torch.tensor([flags for _, flags in rows], device=model.device)
        questions = 2 * FACTS
        guesses = model(tokens, logits_to_keep=questions + 1).logits.argmax(-1)[:, :-1]
        asked = answers[:, -questions:]
        right += int((guesses == tokens[:, -questions:])[asked].sum())
        total += int(asked.sum())
    return right / total


def measure(folder: Path, scale: Scale, seed: int, device: str) -> list[dict[str, Any]]:
    """Share of right answers by factor of the length and of theta."""
    found = []
    for factor in THETA_FACTORS:
        model = load(folder, device).eval()
        raise_theta(model, factor)
        found += [
            {"theta": factor, "times": times, "right": accuracy(model, times * scale.length, scale.trials, seed)}
            for times in TIMES
        ]
    return found


def rows_of(units: dict[str, list[list[dict[str, Any]]]]) -> list[dict[str, Any]]:
    """One row for each model, theta and length, with the spread over seeds."""
    return [
        {
            "model": name,
            "theta": one["theta"],
            "times": one["times"],
            **spread([seed[number]["right"] for seed in seeds]),
            "seeds": len(seeds),
        }
        for name, seeds in units.items()
        for number, one in enumerate(seeds[0])
    ]


def draw_picture(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw the share of right answers by length, for each theta, with the range over seeds."""
    from surgery.reporting.theme import LIGHT, drawn_in, grid, new_figure, to_png

    with drawn_in(LIGHT):
        figure = new_figure(height=3.4)
        for axes, factor in zip(figure.subplots(1, len(THETA_FACTORS), sharey=True), THETA_FACTORS, strict=True):
            grid(axes, LIGHT)
            for number, name in enumerate(dict.fromkeys(row["model"] for row in rows)):
                own = [row for row in rows if row["model"] == name and row["theta"] == factor]
                times = [row["times"] for row in own]
                colour = LIGHT.series[number % len(LIGHT.series)]
                line = "-" if number < len(LIGHT.series) else "--"  # colours repeat
                means = [row["mean"] for row in own]
                axes.plot(times, means, line, label=name, color=colour, marker="osd^vx"[number % 6])
                low, high = ([row[key] for row in own] for key in ("least", "greatest"))
                axes.fill_between(times, low, high, color=colour, alpha=0.1, linewidth=0)
            axes.set_xscale("log", base=2)
            axes.set_xticks(TIMES, [str(times) for times in TIMES])
            axes.set_xlabel("length, times the trained length")
            axes.set_title(f"RoPE's base times {factor}")
        figure.axes[0].set_ylabel("right answers")
        figure.axes[-1].legend()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(to_png(figure, LIGHT))


def main(given: list[str] | None = None) -> list[dict[str, Any]]:
    """Train and measure what is left; report what is finished."""
    parser = arguments(__doc__)
    parser.add_argument("--models", nargs="+", choices=NAMES, default=NAMES)
    options = parser.parse_args(given)
    scale, size = scale_of(options)
    steps = scale.steps
    device = device_of(options)
    units: dict[str, list[list[dict[str, Any]]]] = {}
    for seed in range(options.seeds):
        folder = options.state / f"retrieval-{size}" / str(seed)
        trainer = Trainer(
            scale, steps, training_rows(scale, steps, seed), VOCABULARY, folder, seed=seed, device=options.device
        )
        for name in options.models:
            found = kept(
                folder / f"{name}.json",
                lambda name=name, trainer=trainer, seed=seed: measure(trainer.model(name), scale, seed, device),
            )
            units.setdefault(name, []).append(found)
            print(f"seed {seed} {name}: " + " ".join(f"{one['times']}x{one['right']:.2f}" for one in found), flush=True)
    rows = rows_of(units)
    report("papers/retrieval", rows, options.out)
    if options.picture is not None:
        draw_picture(rows, options.picture)
    return rows


if __name__ == "__main__":
    main()
