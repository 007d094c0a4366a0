"""Pictures of attention: the greatest weight and the entropy by n, and maps by layer and head."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from surgery.reporting.figures.axes import line_of, middle, numbered, tokens_axis
from surgery.reporting.formats import span
from surgery.reporting.theme import Theme, grid, new_figure

Plain = Mapping[str, Any]

# Differences below this look like none.
_LEAST_SCALE = 0.01


def attention_by_n(result: Plain, section: Plain, theme: Theme) -> Figure:
    """Greatest weight and entropy of the average head by n; the shaded band holds 80% of the heads."""
    figure = new_figure(height=3.6)
    left, right = figure.subplots(1, 2)
    for axes in (left, right):
        grid(axes, theme)
    own_first = sorted(section["results"], key=lambda own: -own["model"])
    for own in own_first:
        line = line_of(result, own["model"], theme)
        points = own["by_n"]
        where = [middle(point) for point in points]
        left.fill_between(
            where,
            [point["greatest_low"] for point in points],
            [point["greatest_high"] for point in points],
            color=line.colour,
            alpha=0.12,
            linewidth=0,
        )
        for axes, key in ((left, "greatest"), (right, "entropy")):
            axes.plot(
                where,
                [point[key] for point in points],
                color=line.colour,
                linestyle=line.dashes,
                marker=line.marker,
                markersize=3.5,
                markerfacecolor="none" if line.dashes == "--" else line.colour,
                linewidth=1.6,
                label=line.name,
            )
    last = section["ranges"][-1][1]
    whole = np.geomspace(1, last, 60)
    right.plot(whole, np.log(whole), color=theme.quiet, linewidth=0.9, linestyle=":", label="uniform attention, ln n")
    left.set_ylim(bottom=0)
    right.set_ylim(bottom=0)
    left.set_ylabel("greatest weight")
    right.set_ylabel("entropy (nats)")
    for axes in (left, right):
        tokens_axis(axes, last)
        axes.set_xlabel("n, keys that the query may attend to")
    left.legend()
    right.legend()
    return figure


def attention_maps(result: Plain, section: Plain, theme: Theme) -> Figure:
    """Greatest weight by layer and head in the last range of n: of the base, then what each model differs by.

    Maps of a model and its base look alike. Without a base, and where the layers are others, each model has its own.
    """
    base_first = sorted(section["results"], key=lambda own: -own["model"])
    heads = max(len(own["greatest"][0]) for own in base_first)
    figure = new_figure(height=(0.9 + min(4.0, 0.2 * max(4, heads))) * len(base_first))
    panels = figure.subplots(len(base_first), squeeze=False)[:, 0]
    base = base_first[0] if base_first[0]["model"] == len(result["models"]) else None
    images = []
    for axes, own in zip(panels, base_first, strict=True):
        values, compared = _greatest(own), base is not None and own is not base and base["layers"] == own["layers"]
        what = "greatest weight"
        if compared and base is not None:
            values, what = values - _greatest(base), "greatest weight, model - base"
        images.append(_map(axes, own["layers"], values, theme, differs=compared))
        name = line_of(result, own["model"], theme).name
        axes.set_title(f"{name}: {what}, n = {span(*section['ranges'][-1])}")
    for axes, image in zip(panels, images, strict=True):
        _bar(figure, image, [axes])
    return figure


def _greatest(own: Plain) -> Any:
    return np.array([[head[-1] for head in layer] for layer in own["greatest"]], dtype=float)


def rejected_maps(section: Plain, own: Plain, theme: Theme) -> Figure:
    """Share of keys and of whole blocks that are rejected, by layer and head."""
    kinds = [("rejected_keys", "share of keys rejected"), ("rejected_blocks", "share of blocks rejected")]
    heads = len(own["greatest"][0])
    figure = new_figure(height=2 * (0.9 + min(4.0, 0.2 * max(4, heads))))
    panels = figure.subplots(2, squeeze=False)[:, 0]
    for axes, (key, title) in zip(panels, kinds, strict=True):
        values = np.array([[0.0] * heads if layer is None else layer for layer in own[key]])
        image = _map(axes, own["layers"], values, theme)
        side = section["options"]["block"]
        axes.set_title(f"{title} of {side} by {side}" if key == "rejected_blocks" else title)
    _bar(figure, image, panels)
    return figure


def _map(axes: Any, layers: Any, values: Any, theme: Theme, *, differs: bool = False) -> Any:
    """Values from 0 to 1, or differences, which have a scale of their own around 0."""
    most = max(float(np.nanmax(np.abs(values))), _LEAST_SCALE) if differs and not np.isnan(values).all() else 1.0
    colours = theme.diverging() if differs else theme.sequential()
    low = -most if differs else 0
    image = axes.imshow(values.T, aspect="auto", interpolation="nearest", cmap=colours, vmin=low, vmax=most)
    numbered(axes, "x", layers, 30)
    numbered(axes, "y", range(values.shape[1]), 12)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("layer")
    axes.set_ylabel("head")
    return image


def _bar(figure: Figure, image: Any, panels: Any) -> None:
    bar = figure.colorbar(image, ax=list(panels), pad=0.015, fraction=0.04)
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=0)
