"""Which pictures a result has, each drawn for light and dark pages and as a PNG."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from matplotlib.figure import Figure

from surgery.reporting import descriptions, figures
from surgery.reporting.theme import DARK, LIGHT, Theme, drawn_in, to_png, to_svg

Plain = Mapping[str, Any]


@dataclass(frozen=True)
class Drawing:
    """One picture: file stem, words for those who do not see it, and its renderings."""

    stem: str
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
    """The pictures of a result: ``operations`` and ``trainings`` are in the order of their data, None where empty."""

    losses: Drawing
    differences: Drawing | None
    operations: tuple[tuple[Drawing | None, Drawing], ...]
    trainings: tuple[Drawing | None, ...]

    def __iter__(self) -> Iterator[Drawing]:
        every = [self.losses, self.differences, *(part for pair in self.operations for part in pair), *self.trainings]
        return (drawing for drawing in every if drawing is not None)


def draw_all(result: Plain, history: Sequence[Plain]) -> Drawings:
    """Draw everything that the data hold."""
    operations = []
    for index, learned in enumerate(result["model"]["learned"]):
        scales = None
        if learned["scale"]:
            scales = _draw(
                _stem(f"{learned['name']}-scale", index),
                descriptions.describe_scales(learned),
                partial(figures.scale_map, learned),
            )
        multipliers = _draw(
            _stem(f"{learned['name']}-multiplier", index),
            descriptions.describe_multipliers(learned),
            partial(figures.multiplier_curves, learned),
        )
        operations.append((scales, multipliers))
    trainings = [
        _draw(
            _stem("training", index),
            descriptions.describe_training(run["rows"]),
            partial(figures.training_curves, run["rows"]),
        )
        if figures.has_training_losses(run["rows"])
        else None
        for index, run in enumerate(history)
    ]
    differences = None
    if result["against"] is not None:
        differences = _draw(
            "paired-difference",
            descriptions.describe_differences(result),
            partial(figures.paired_difference, result),
        )
    losses = _draw("loss-by-position", descriptions.describe_losses(result), partial(figures.loss_by_position, result))
    return Drawings(losses, differences, tuple(operations), tuple(trainings))


def _draw(stem: str, alt: str, draw: Callable[[Theme], Figure]) -> Drawing:
    with drawn_in(LIGHT):
        figure = draw(LIGHT)
        png = to_png(figure, LIGHT)
        figure.set_layout_engine("none")  # laid out once is enough
        light = to_svg(figure)
    with drawn_in(DARK):
        dark = to_svg(draw(DARK))
    return Drawing(stem, alt, png, light, dark)


def _stem(name: str, index: int) -> str:
    return name if index == 0 else f"{name}-{index + 1}"


def _data_uri(svg: bytes) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(svg).decode("ascii")
