"""Which pictures a result has, each drawn for light and dark pages, as SVG and as PNG."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from matplotlib.figure import Figure

from surgery.reporting import descriptions, figures, wording
from surgery.reporting.theme import DARK, LIGHT, Theme, drawn_in, to_png, to_svg

Plain = Mapping[str, Any]


@dataclass(frozen=True)
class Drawing:
    """One picture: file stem, caption, words for those who do not see it, and its renderings."""

    stem: str
    caption: str
    alt: str
    png: bytes
    light_svg: bytes
    dark_svg: bytes

    @property
    def light(self) -> str:
        """Data URI for a light page and for paper."""
        return _data_uri(self.light_svg)

    @property
    def dark(self) -> str:
        """Data URI for a dark page."""
        return _data_uri(self.dark_svg)


@dataclass(frozen=True)
class Drawings:
    """The pictures of a result, in the order of its data: of each section, operation and training of each model."""

    sections: tuple[tuple[Drawing, ...], ...]
    operations: tuple[tuple[tuple[Drawing, ...], ...], ...]
    trainings: tuple[tuple[Drawing | None, ...], ...]

    def __iter__(self) -> Iterator[Drawing]:
        for section in self.sections:
            yield from section
        for model in self.operations:
            for operation in model:
                yield from operation
        for trainings in self.trainings:
            yield from (drawing for drawing in trainings if drawing is not None)


def draw_all(result: Plain, histories: Sequence[Sequence[Plain]]) -> Drawings:
    """Draw everything that the data hold.

    Args:
        result: what ``EvaluationResult.to_dict()`` gives.
        histories: training runs of each model, each ``{"label": str, "rows": [dict, ...]}``.
    """
    draw = _Pen()
    return Drawings(
        tuple(tuple(_section(draw, result, section)) for section in result["sections"]),
        tuple(tuple(tuple(_operation(draw, own)) for own in use["learned"]) for use in result["models"]),
        tuple(tuple(_training(draw, run) for run in runs) for runs in histories),
    )


def _section(draw: _Pen, result: Plain, section: Plain) -> Iterator[Drawing]:
    if section["kind"] == "loss":
        yield draw(
            "loss-by-position",
            "Marked: means of the buckets below. Faint: means of narrow ranges.",
            descriptions.describe_losses(result, section),
            partial(figures.loss_by_position, result, section),
        )
        for own in section["results"] if result["against"] is not None else ():
            name = result["models"][own["model"]]["name"]
            yield draw(
                "paired-difference",
                f"{name}, difference to the base. Bars: mean difference. Whiskers: interval. Hatched bars decide "
                "nothing or stay within what counts as kept (grey band).",
                descriptions.describe_differences(own),
                partial(figures.paired_difference, section, own),
            )
    elif section["kind"] == "retrieval":
        yield draw(
            f"retrieval-{section['options']['task']}",
            "Share of the answers' tokens that is right, by length and depth. A star: every whole answer of the cell.",
            descriptions.describe_retrieval(result, section),
            partial(figures.retrieval_maps, result, section),
        )
    elif section["kind"] == "attention":
        yield draw(
            "attention-by-n",
            "Means over all layers and heads; the shade holds the middle four fifths of the heads.",
            descriptions.describe_attention(result, section),
            partial(figures.attention_by_n, result, section),
        )
        yield draw(
            "attention-maps",
            "One cell for each layer and head.",
            descriptions.describe_attention_maps(result, section),
            partial(figures.attention_maps, result, section),
        )
        for own in section["results"]:
            if own["rejected_keys"] is not None:
                yield draw(
                    "rejected",
                    "One cell for each layer and head; layers that do not screen reject nothing.",
                    descriptions.describe_rejected(own),
                    partial(figures.rejected_maps, section, own),
                )


def _operation(draw: _Pen, learned: Plain) -> Iterator[Drawing]:
    if learned["values"]:
        dotted = " Dotted cells: the multiplier is negative for some n within the measured length."
        origin = "start" if learned["start"] else "median"
        yield draw(
            f"{learned['name']}-{next(iter(learned['values']))}",
            f"One cell for each layer and head. Blue: below the {origin} value. Orange: above it."
            + (dotted if learned["negative_heads"] else ""),
            descriptions.describe_parameters(learned),
            partial(figures.parameter_map, learned),
        )
    if learned["multipliers"]:
        yield draw(
            f"{learned['name']}-multiplier",
            "The factor on the queries of each head. Above 1 attention is sharper than plain softmax, below 1 flatter.",
            descriptions.describe_multipliers(learned),
            partial(figures.multiplier_curves, learned),
        )


def _training(draw: _Pen, run: Plain) -> Drawing | None:
    if not figures.has_training_losses(run["rows"]):
        return None
    steps = sum("loss" in row for row in run["rows"])
    return draw(
        "training",
        f"{run.get('label', 'training')}: {wording.counted(steps, 'logged step')}.",
        descriptions.describe_training(run["rows"]),
        partial(figures.training_curves, run["rows"]),
    )


class _Pen:
    """Draws, and numbers pictures of one name."""

    def __init__(self) -> None:
        self._names: dict[str, int] = {}

    def __call__(self, name: str, caption: str, alt: str, draw: Callable[[Theme], Figure]) -> Drawing:
        number = self._names[name] = self._names.get(name, 0) + 1
        with drawn_in(LIGHT):
            figure = draw(LIGHT)
            png = to_png(figure, LIGHT)
            figure.set_layout_engine("none")  # laid out once is enough
            light = to_svg(figure)
        with drawn_in(DARK):
            dark = to_svg(draw(DARK))
        return Drawing(name if number == 1 else f"{name}-{number}", caption, alt, png, light, dark)


def _data_uri(svg: bytes) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(svg).decode("ascii")
