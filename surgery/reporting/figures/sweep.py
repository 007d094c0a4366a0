"""Picture of a sweep: the loss by share of rejected keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

from surgery.reporting.formats import count, signed
from surgery.reporting.theme import Theme, grid, new_figure

Plain = Mapping[str, Any]


def loss_against_rejected(result: Plain, theme: Theme) -> Figure:
    """For each length the mean change of the loss and that of the worst passage, and the estimated change."""
    figure = new_figure(height=4.0)
    axes = figure.subplots()
    grid(axes, theme)
    points = result["points"]
    tokens = [length["tokens"] for length in points[0]["lengths"]]
    for place, length in enumerate(tokens):
        own = [point["lengths"][place] for point in points]
        shares = [100 * one["rejected"] for one in own]
        colour, marker = theme.series[place % len(theme.series)], "o^Dv"[place % 4]
        axes.plot(
            shares, [one["change"] for one in own], color=colour, marker=marker, label=f"{count(length)} tokens, mean"
        )
        worst = [one["worst"] for one in own]
        axes.plot(
            shares, worst, color=colour, linestyle=":", linewidth=1.2, label=f"{count(length)} tokens, worst passage"
        )
    axes.plot(
        [100 * point["observed"] for point in points],
        [point["estimated"] for point in points],
        color=theme.quiet,
        linestyle="--",
        linewidth=1.2,
        label="estimated from the observed texts",
    )
    axes.axhline(0, color=theme.ink, linewidth=0.9)
    axes.set_xlabel("keys rejected (%)")
    axes.set_ylabel("change of the loss (nats per token)")
    axes.yaxis.set_major_formatter(lambda value, _: signed(value, 3))
    axes.legend()
    return figure
