"""Shared parts of pictures: axes by tokens, numbered ticks, the line of each model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator

from surgery.reporting.formats import clipped, count
from surgery.reporting.theme import Theme

Plain = Mapping[str, Any]


@dataclass(frozen=True)
class Line:
    """The colour, marker and dashes of one model in every picture. ``model`` is the number of models for the base."""

    model: int
    name: str
    colour: str
    marker: str
    dashes: str


def line_of(result: Plain, model: int, theme: Theme) -> Line:
    """The line of a model; the base's is dashed."""
    if model == len(result["models"]):
        return Line(model, clipped(result["against"]["name"]), theme.base, "s", "--")
    place = model % len(theme.series)
    return Line(model, clipped(result["models"][model]["name"]), theme.series[place], "o^Dv"[place % 4], "-")


def middle(span: Plain) -> float:
    """The middle of a range of positions on a logarithmic axis."""
    return float(np.sqrt(span["first"] * span["last"]))


def tokens_axis(axes: Axes, last: int) -> None:
    """A logarithmic axis of token counts with round ticks."""
    axes.set_xscale("log", base=2)
    first = axes.get_xlim()[0]
    powers = [2**power for power in range(0, 40, 1 if last < 2**6 else 2) if first <= 2**power <= last * 1.1]
    axes.set_xticks(powers, [count(power) for power in powers])
    axes.xaxis.set_minor_locator(NullLocator())


def numbered(axes: Axes, which: str, names: Sequence[int], most: int) -> None:
    """Ticks with the numbers of layers or heads, at most ``most``."""
    every = -(-len(names) // most)
    places = range(0, len(names), every)
    set_ticks = axes.set_xticks if which == "x" else axes.set_yticks
    set_ticks(list(places), [str(names[place]) for place in places])
