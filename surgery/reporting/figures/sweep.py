"""Picture of a sweep: the loss by the share that is saved."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

from surgery.reporting.formats import count, signed
from surgery.reporting.theme import Theme, grid, new_figure

Plain = Mapping[str, Any]
_SAVED = {"memory": "cache", "time": "time of attention"}


def loss_against_saved(result: Plain, theme: Theme) -> Figure:
    """For each length the mean change of the loss and that of the worst passage, and the estimated change."""
    figure = new_figure(height=4.0)
    axes = figure.subplots()
    grid(axes, theme)
    points = result["points"]
    save, context = result["settings"].get("save"), result["settings"].get("context")
    tokens = [length["tokens"] for length in points[0]["lengths"]]
    for place, length in enumerate(tokens):
        own = [point["lengths"][place] for point in points]
        shares = [100 * one["rejected"] for one in own] if context is None else [100 * one["saved"] for one in points]
        colour, marker = theme.series[place % len(theme.series)], "o^Dv"[place % 4]
        axes.plot(
            shares, [one["change"] for one in own], color=colour, marker=marker, label=f"{count(length)} tokens, mean"
        )
        worst = [one["worst"] for one in own]
        axes.plot(
            shares, worst, color=colour, linestyle=":", linewidth=1.2, label=f"{count(length)} tokens, worst passage"
        )
    axes.plot(
        [100 * point["observed" if context is None else "saved"] for point in points],
        [point["estimated"] for point in points],
        color=theme.quiet,
        linestyle="--",
        linewidth=1.2,
        label="estimated from the observed texts",
    )
    axes.axhline(0, color=theme.ink, linewidth=0.9)
    axes.set_xlabel("keys rejected (%)" if context is None else f"{_SAVED[save]} saved at {count(context)} tokens (%)")
    axes.set_ylabel("change of the loss (nats per token)")
    axes.yaxis.set_major_formatter(lambda value, _: signed(value, 3))
    axes.legend()
    return figure
