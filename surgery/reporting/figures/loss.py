"""Pictures of the loss by position and of its difference to the base."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from surgery.reporting.figures.axes import Line, line_of, middle, tokens_axis
from surgery.reporting.formats import signed, span
from surgery.reporting.theme import Theme, grid, new_figure

Plain = Mapping[str, Any]

_FIRST_DRAWN = 8


def loss_by_position(result: Plain, section: Plain, theme: Theme) -> Figure:
    """Loss by number of tokens seen: means of narrow ranges in the background, means of buckets in front.

    With a base, its loss is above, and what each model differs by is below: two lines on top of one another show
    nothing.
    """
    if result["against"] is None:
        figure = new_figure()
        axes = figure.subplots()
        _losses(axes, [(line_of(result, own["model"], theme), own, "loss") for own in section["results"]], theme)
    else:
        figure = new_figure(height=4.6)
        above, axes = figure.subplots(2, 1, sharex=True, height_ratios=[1, 1.5])
        _losses(above, [(line_of(result, len(result["models"]), theme), section["results"][0], "base_loss")], theme)
        _differences(axes, result, section, theme)
    tokens_axis(axes, max(2, section["data"]["longest"] - 1))
    axes.set_xlabel("tokens seen before the prediction")
    return figure


def _differences(axes: Axes, result: Plain, section: Plain, theme: Theme) -> None:
    """Model - base: narrow ranges as a thin line, buckets with their intervals as markers."""
    grid(axes, theme)
    margin = section["margin"]
    axes.axhspan(-margin, margin, color=theme.plain, alpha=0.22, linewidth=0, label="counts as kept")
    axes.axhline(0, color=theme.ink, linewidth=0.9)
    for own in section["results"]:
        line = line_of(result, own["model"], theme)
        curve = [point for point in own["curve"] if point["last"] >= _FIRST_DRAWN] or own["curve"]
        changes = [point["loss"] - point["base_loss"] for point in curve]
        axes.plot([middle(point) for point in curve], changes, color=line.colour, linewidth=0.9, alpha=0.4)
        means = [bucket["difference"] for bucket in own["buckets"]]
        spread = [
            [0.0 if mean["low"] is None else mean["value"] - mean["low"] for mean in means],
            [0.0 if mean["high"] is None else mean["high"] - mean["value"] for mean in means],
        ]
        axes.errorbar(
            [middle(bucket) for bucket in own["buckets"]],
            [mean["value"] for mean in means],
            spread,
            color=line.colour,
            linestyle=line.dashes,
            linewidth=1.8,
            marker=line.marker,
            markersize=5.5,
            capsize=3,
            label=line.name,
        )
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: signed(round(value, 10), _digits(axes))))
    axes.set_ylabel("loss, model - base")
    axes.legend()


def _losses(axes: Axes, lines: Sequence[tuple[Line, Plain, str]], theme: Theme) -> None:
    grid(axes, theme)
    for line, own, key in lines:
        # The losses of the first few tokens are so large that they would flatten the rest of the curve.
        curve = [point for point in own["curve"] if point["last"] >= _FIRST_DRAWN] or own["curve"]
        axes.plot(
            [middle(point) for point in curve],
            [point[key] for point in curve],
            color=line.colour,
            linewidth=0.9,
            alpha=0.4,
        )
        axes.plot(
            [middle(bucket) for bucket in own["buckets"]],
            [bucket[key]["value"] for bucket in own["buckets"]],
            color=line.colour,
            linestyle=line.dashes,
            linewidth=1.8,
            marker=line.marker,
            markersize=5.5 if key == "loss" else 8,
            markerfacecolor=line.colour if key == "loss" else "none",
            label=line.name,
        )
    axes.set_ylabel("loss (nats per token)")
    axes.legend()


def paired_difference(section: Plain, own: Plain, theme: Theme) -> Figure:
    """Model - base on the same tokens, for each bucket and over all tokens, with intervals."""
    buckets = [*own["buckets"], own["overall"]]
    margin = section["margin"]
    figure = new_figure(height=3.2)
    axes = figure.subplots()
    grid(axes, theme)
    axes.axhspan(-margin, margin, color=theme.plain, alpha=0.22, linewidth=0, label="counts as kept")
    axes.axhline(0, color=theme.ink, linewidth=0.9)
    colours = {"lost": theme.worse, "gained": theme.better}
    places = [*range(len(buckets) - 1), len(buckets) - 0.6]
    for place, bucket in zip(places, buckets, strict=True):
        value, low, high = (bucket["difference"][key] for key in ("value", "low", "high"))
        decided = bucket["verdict"] in colours
        colour = colours.get(bucket["verdict"], theme.plain)
        axes.bar(
            place,
            value,
            width=0.62,
            color=colour if decided else "none",
            edgecolor=colour,
            hatch="" if decided else "////",
            linewidth=1,
        )
        if low is not None:
            axes.errorbar(
                place, value, [[value - low], [high - value]], color=theme.ink, capsize=4, linewidth=1.3, capthick=1.3
            )
        top = max(value, high if high is not None else value, 0)
        axes.annotate(
            signed(value),
            (place, top),
            xytext=(0, 4),
            textcoords="offset points",
            ha="center",
            fontsize=8.5,
            color=theme.ink,
        )
    labels = [span(bucket["first"], bucket["last"]) for bucket in buckets[:-1]]
    words = [bucket["verdict"] for bucket in buckets]
    axes.set_xticks(places, [f"{label}\n{word}" for label, word in zip([*labels, "all"], words, strict=True)])
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: signed(round(value, 10), _digits(axes))))
    axes.margins(y=0.14)
    axes.set_xlabel("tokens seen before the prediction")
    axes.set_ylabel("loss, model - base")
    axes.legend(loc="best")
    return figure


def _digits(axes: Axes) -> int:
    low, high = axes.get_ylim()
    return max(2, min(8, int(2 - np.floor(np.log10(max(high - low, 1e-8))))))
