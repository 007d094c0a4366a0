"""ABCDigits, the retrieval task of the paper of Multiscreen, at and beyond the trained length (arXiv 2604.01178).

python -m bench.papers.digits --state FOLDER [--scale cpu] [--seeds 3] [--out FILE] [--picture FILE]

The test has lines like `A=967892`: each letter has a number of its own. The target's line stands once, at a place that
is the depth, and again last, without its digits; the other lines are drawn with weights 2^0, 2^1, ... that are shuffled
over the other letters, each at least once. The model completes the digits; an answer is right if all are.

Tokens: a letter with its equals sign is one, each digit is one. Numbers of one digit make a whole line one token, as in
`retrieval`, but not the last line: small models did not learn to look one token back within minutes.

A Multiscreen model and Llama-like ones of as many parameters learn the task itself; in the paper they learn on text. A
row of the training has two to all letters, in lines drawn as in the test, and then asks for some of them in random
order: their digits alone count in the loss. An interrupted run is continued by the same command.

Controls: Llama-like models with SSMax, without positions, and with both; those with RoPE are also measured with its
base times 50, as in the paper of SSMax. Multiscreen is also measured with the windows that it has learned. In the paper
a window beyond the trained length is infinite at inference, and an infinite window has no position.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from bench.harness import report
from bench.papers.pairs import KINDS, parameters_of, trained
from bench.papers.runs import Scale, arguments, device_of, kept, raise_theta, scale_of, spread
from surgery.data import Row

TIMES = (1, 2, 4, 8, 16)
DEPTHS = (0.1, 0.5, 0.9)
DIGITS = 10
LETTER = DIGITS  # token ids: the ten digits, the letters with an equals sign, and whole lines of one digit
ASKED = 8  # letters that a row of the training asks for, at most
# At 2^-4, the rate of its paper, Multiscreen learns nothing.
RATES = {name: 2.0**-6 if name == "multiscreen" else 2.0**-8 for name in KINDS}
PANELS = {
    "Multiscreen": ("multiscreen",),
    "Llama-like, RoPE": ("softmax", "ssmax"),
    "Llama-like, no positions": ("nope", "ssmax-nope"),
}
OWN = {"minutes": {"psi": 4, "sequences": 8, "steps": 600, "trials": 256}}


class Variant(NamedTuple):
    """What a trained model is measured with."""

    theta: int = 1  # the factor of RoPE's base
    windows: str | None = None  # of Multiscreen, beyond the trained length

    @property
    def label(self) -> str:
        """What differs from the trained model, in words."""
        base = "" if self.theta == 1 else f", base times {self.theta}"
        return base if self.windows is None else f", windows {self.windows}"

    def apply(self, model: Any) -> None:
        """Change a model, in place."""
        if self.windows is not None:
            model.config.infinite_windows = self.windows == "infinite"
        if self.theta != 1:
            raise_theta(model, self.theta)


ROPE, NOPE = (Variant(), Variant(theta=50)), (Variant(),)
VARIANTS = {
    "multiscreen": (Variant(windows="infinite"), Variant(windows="as learned")),
    "softmax": ROPE,
    "ssmax": ROPE,
    "nope": NOPE,
    "ssmax-nope": NOPE,
}


class Shape(NamedTuple):
    """How many letters there are, and how many digits a number has."""

    letters: int
    digits: int

    @classmethod
    def of(cls, length: int) -> Shape:
        """What fits a trained length: the paper's 26 and 6 from 512 tokens on."""
        return cls(26, 6) if length >= 512 else cls(8, 1)

    @property
    def line(self) -> int:
        """Tokens of a line."""
        return 1 if self.digits == 1 else self.digits + 1

    @property
    def question(self) -> int:
        """Tokens of a line that is asked for."""
        return self.digits + 1

    @property
    def vocabulary(self) -> int:
        """Number of tokens."""
        return LETTER + self.letters * (1 + DIGITS if self.digits == 1 else 1)

    def numbers(self, letters: int, draw: random.Random) -> dict[int, list[int]]:
        """Some letters in random order, with a number for each."""
        chosen = draw.sample(range(self.letters), letters)
        return {letter: [draw.randrange(DIGITS) for _ in range(self.digits)] for letter in chosen}

    def text(self, lines: Sequence[int], asked: Sequence[int], numbers: dict[int, list[int]]) -> list[int]:
        """The tokens of lines and of questions with their answers, each given by its letter."""
        if self.digits == 1:
            whole = LETTER + self.letters
            tokens = [whole + DIGITS * letter + numbers[letter][0] for letter in lines]
        else:
            tokens = [token for letter in lines for token in (LETTER + letter, *numbers[letter])]
        return tokens + [token for letter in asked for token in (LETTER + letter, *numbers[letter])]


def drawn_lines(letters: Sequence[int], count: int, draw: random.Random) -> list[int]:
    """Lines in random order: each letter once, and then each twice as often as the one before it."""
    weights = [2.0 ** min(exponent, 24) for exponent in range(len(letters))]
    lines = [*letters, *draw.choices(letters, weights, k=count - len(letters))]
    draw.shuffle(lines)
    return lines


def target_row(length: int, shape: Shape, depth: float, draw: random.Random) -> list[int]:
    """Tokens of one row of the test; the last ones are the answer.

    Args:
        length: greatest number of tokens.
        shape: of the task.
        depth: place of the target's line among the others, from 0 to 1.
        draw: the random source.
    """
    numbers = shape.numbers(shape.letters, draw)
    target, *others = numbers
    lines = drawn_lines(others, (length - shape.question) // shape.line - 1, draw)
    lines.insert(round(depth * len(lines)), target)
    return shape.text(lines, [target], numbers)


def training_row(length: int, shape: Shape, draw: random.Random) -> tuple[list[int], list[bool]]:
    """Tokens of one row of the training, and which of them are digits that it asks for.

    Args:
        length: greatest number of tokens.
        shape: of the task.
        draw: the random source.
    """
    numbers = shape.numbers(draw.randint(2, shape.letters), draw)
    asked = draw.sample(list(numbers), min(ASKED, len(numbers)))
    room = (length - shape.question * len(asked)) // shape.line
    lines = drawn_lines(list(numbers), draw.randint(len(numbers), room), draw)
    answers = [False] * (shape.line * len(lines)) + [False, *[True] * shape.digits] * len(asked)
    return shape.text(lines, asked, numbers), answers


def training_rows(scale: Scale, seed: int) -> list[Row]:
    """One row for each sequence of the training."""
    draw = random.Random(f"training/{seed}")
    shape = Shape.of(scale.length)
    found = (training_row(scale.length, shape, draw) for _ in range(scale.steps * scale.sequences))
    return [Row((tuple(tokens),), (0,), (tuple(answers),)) for tokens, answers in found]


@torch.no_grad()
def accuracy(model: Any, length: int, scale: Scale, seed: int, at_once: int = 4096) -> float:
    """Share of rows whose digits are all right, over the depths."""
    draw = random.Random(f"test/{seed}/{length}")
    shape = Shape.of(scale.length)
    rows = [target_row(length, shape, DEPTHS[trial % len(DEPTHS)], draw) for trial in range(scale.trials)]
    right = 0
    for ids in torch.tensor(rows, device=model.device).split(max(1, at_once // length)):
        # Teacher forcing: the greedy digits are all right exactly if each is right after the right ones before it.
        guesses = model(ids, logits_to_keep=shape.digits + 1).logits[:, :-1].argmax(-1)
        right += int((guesses == ids[:, -shape.digits :]).all(-1).sum())
    return right / scale.trials


def measure(name: str, model: Any, scale: Scale, seed: int) -> list[dict[str, Any]]:
    """Share of right answers by variant and length; 0 for a training that diverged."""
    found = []
    for variant in VARIANTS[name]:
        if model is not None:
            variant.apply(model)
        for times in TIMES:
            right = 0.0 if model is None else accuracy(model, times * scale.length, scale, seed)
            found.append({**variant._asdict(), "times": times, "right": right})
    return found


def draw_picture(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw the share of right answers by length, with the range over seeds, in a panel for each sort of model."""
    from surgery.reporting.theme import LIGHT, drawn_in, grid, new_figure, to_png

    with drawn_in(LIGHT):
        figure = new_figure(height=3.8)
        drawn = {title: names for title, names in PANELS.items() if any(row["model"] in names for row in rows)}
        panels = figure.subplots(1, len(drawn), sharey=True, squeeze=False)[0]
        for axes, (title, names) in zip(panels, drawn.items(), strict=True):
            grid(axes, LIGHT)
            axes.set_title(title)
            lines = [(name, variant) for name in names for variant in VARIANTS[name]]
            for number, (name, variant) in enumerate(lines):
                mine = {"model": name, **variant._asdict()}
                own = [row for row in rows if mine.items() <= row.items()]
                times, colour = [row["times"] for row in own], LIGHT.series[number]
                means, label = [row["mean"] for row in own], name + variant.label
                axes.plot(times, means, marker="osdv"[number], color=colour, label=label)
                low, high = ([row[key] for row in own] for key in ("least", "greatest"))
                axes.fill_between(times, low, high, color=colour, alpha=0.15, linewidth=0)
            axes.set_xscale("log", base=2)
            axes.set_xticks(TIMES, [str(times) for times in TIMES])
            axes.set_ylim(0, 1.03)
            axes.set_xlabel("length, times the trained length")
            axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.22))
        panels[0].set_ylabel("right answers")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(to_png(figure, LIGHT))


def main(given: list[str] | None = None) -> list[dict[str, Any]]:
    """Train and measure what is left; report what is finished."""
    parser = arguments(__doc__)
    parser.add_argument("--models", nargs="+", choices=KINDS, default=list(KINDS))
    options = parser.parse_args(given)
    scale, size = scale_of(options, OWN)
    vocabulary = Shape.of(scale.length).vocabulary
    units: dict[str, list[list[dict[str, Any]]]] = {}
    for seed in range(options.seeds):
        rows = training_rows(scale, seed)
        for name in options.models:
            folder = options.state / f"digits-{size}-psi{scale.psi}" / str(seed) / name
            run = partial(trained, name, scale, rows, vocabulary, folder, lr=RATES[name], seed=seed)

            def work(name: str = name, run: Any = run, seed: int = seed) -> list[dict[str, Any]]:
                return measure(name, run(device=device_of(options)).model, scale, seed)

            units.setdefault(name, []).append(kept(folder / "right.json", work))
            print(f"seed {seed} {name}: {units[name][-1]}", flush=True)
    parameters = {name: parameters_of(name, scale, vocabulary) for name in options.models}
    table = [
        {
            "model": name,
            "parameters": parameters[name],
            **{key: value for key, value in one.items() if key != "right"},
            **spread([seed[number]["right"] for seed in seeds]),
            "seeds": len(seeds),
        }
        for name, seeds in units.items()
        for number, one in enumerate(seeds[0])
    ]
    report("papers/digits", table, options.out)
    if options.picture is not None:
        draw_picture(table, options.picture)
    return table


if __name__ == "__main__":
    main()
