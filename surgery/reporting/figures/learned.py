"""Pictures of the learned parameters of an operation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from surgery.reporting.figures.axes import numbered, tokens_axis
from surgery.reporting.formats import count, signed
from surgery.reporting.theme import Theme, grid, new_figure

Plain = Mapping[str, Any]


def parameter_map(learned: Plain, theme: Theme) -> Figure:
    """Each learned parameter by layer and head; the start value has the colour of the page."""
    parts = [(name, np.array(values)) for name, values in learned["values"].items()]
    layers, heads = learned["layers"], learned["heads"]
    height = min(8.0, 0.9 + 0.2 * max(4, len(heads)))
    figure = new_figure(height=height * len(parts))
    negative = {(head["layer"], head["head"]) for head in learned["negative_heads"]}
    for axes, (name, values) in zip(figure.subplots(len(parts), squeeze=False)[:, 0], parts, strict=True):
        start = learned["start"].get(name)
        centre = float(np.median(values)) if start is None else start
        reach = float(np.abs(values - centre).max()) or 0.1
        image = axes.imshow(
            values.T,
            aspect="auto",
            interpolation="nearest",
            cmap=theme.diverging(),
            vmin=centre - reach,
            vmax=centre + reach,
        )
        marked = [(x, y) for x, layer in enumerate(layers) for y, head in enumerate(heads) if (layer, head) in negative]
        if marked:
            axes.scatter(*zip(*marked, strict=True), s=5, color=theme.ink, linewidths=0)
        numbered(axes, "x", layers, 30)
        numbered(axes, "y", heads, 12)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.set_xlabel("layer")
        axes.set_ylabel("head")
        bar = figure.colorbar(image, ax=axes, pad=0.015, fraction=0.04)
        bar.outline.set_visible(False)
        bar.ax.tick_params(length=0)
        bar.ax.yaxis.set_major_locator(MaxNLocator(5))
        bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: signed(round(value, 6), 3)))
        origin = f"median {centre:.3g}" if start is None else f"start value {start:g}"
        axes.set_title(f"{name}, relative to the {origin}")
    return figure


def multiplier_curves(learned: Plain, theme: Theme) -> Figure:
    """m(n) of every head; the lines between the points are exact, because m is linear in ln n."""
    points = learned["multipliers"]
    contexts = [point["n"] for point in points]
    values = np.array([point["values"] for point in points]).reshape(len(points), -1)
    figure = new_figure(height=3.0)
    axes = figure.subplots()
    grid(axes, theme)
    axes.plot(contexts, values, color=theme.model, linewidth=0.7, alpha=max(0.08, min(0.5, 40 / values.shape[1])))
    axes.plot([], [], color=theme.model, linewidth=0.9, alpha=0.6, label="each head")
    axes.plot(contexts, np.median(values, axis=1), color=theme.model, linewidth=2.4, label="median head")
    axes.axhline(1, color=theme.ink, linewidth=1.1, linestyle="--", label="softmax alone")
    if values.min() < 0:
        axes.axhspan(min(axes.get_ylim()[0], float(values.min())), 0, color=theme.worse, alpha=0.12, linewidth=0)
    label, reference = "n, keys that the query may attend to", learned["reference_length"]
    if reference is not None:
        axes.axvline(reference, color=theme.quiet, linewidth=0.9, linestyle=":")
        label += f" (dotted: N = {count(reference)})"
    tokens_axis(axes, contexts[-1])
    axes.set_xlabel(label)
    axes.set_ylabel("multiplier m(n)")
    axes.legend(loc="upper center", ncols=3)
    return figure
