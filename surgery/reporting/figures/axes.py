"""What the pictures share: axes by tokens, numbered ticks, which line is which model's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator

from surgery.reporting.theme import Theme
from surgery.reporting.wording import clipped, count

Plain = Mapping[str, Any]


@dataclass(frozen=True)
class Line:
    """How one model is drawn everywhere: told apart by colour, marker and dashes. ``model`` counts bases as last."""

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
    """Where a range of positions stands on a logarithmic axis."""
    return float(np.sqrt(span["first"] * span["last"]))


def tokens_axis(axes: Axes, last: int) -> None:
    """A logarithmic axis of token counts with round ticks."""
    axes.set_xscale("log", base=2)
    first = axes.get_xlim()[0]
    powers = [2**power for power in range(0, 40, 1 if last < 2**6 else 2) if first <= 2**power <= last * 1.1]
    axes.set_xticks(powers, [count(power) for power in powers])
    axes.xaxis.set_minor_locator(NullLocator())


def numbered(axes: Axes, which: str, names: Sequence[int], most: int) -> None:
    """Ticks with the numbers of layers or heads, not more than ``most``."""
    every = -(-len(names) // most)
    places = range(0, len(names), every)
    set_ticks = axes.set_xticks if which == "x" else axes.set_yticks
    set_ticks(list(places), [str(names[place]) for place in places])
