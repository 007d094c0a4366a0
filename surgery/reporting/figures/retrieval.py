"""Picture of retrieval by length and depth."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from surgery.reporting.figures.axes import line_of
from surgery.reporting.formats import count
from surgery.reporting.theme import Theme, new_figure

Plain = Mapping[str, Any]


def retrieval_maps(result: Plain, section: Plain, theme: Theme) -> Figure:
    """One heat map for each model, the base first: the share of right answer tokens."""
    grids = [(line_of(result, own["model"], theme).name, own["right"], own["exact"]) for own in section["results"]]
    first = section["results"][0]
    if first["base_right"] is not None:
        name = line_of(result, len(result["models"]), theme).name
        grids.insert(0, (name, first["base_right"], first["base_exact"]))
    lengths, depths = section["lengths"], section["depths"]
    figure = new_figure(width=max(4.0, min(8.0, 4.2 * len(grids))), height=1.1 + 0.42 * len(depths))
    panels = figure.subplots(1, len(grids), squeeze=False, sharey=True)[0]
    colours = theme.sequential()
    for axes, (name, right, exact) in zip(panels, grids, strict=True):
        values = np.array(right).T
        image = axes.imshow(values, aspect="auto", interpolation="nearest", cmap=colours, vmin=0, vmax=1)
        for column in range(len(lengths)):
            for row in range(len(depths)):
                label = f"{values[row, column]:.0%}" + ("*" if exact[column][row] == 1 else "")
                axes.text(
                    column,
                    row,
                    label,
                    ha="center",
                    va="center",
                    fontsize=7.5,
                    color=theme.over(colours(values[row, column])),
                )
        axes.set_xticks(range(len(lengths)), [count(length) for length in lengths])
        axes.set_yticks(range(len(depths)), [f"{depth:g}" for depth in depths])
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.set_xlabel("tokens")
        axes.set_title(name)
    panels[0].set_ylabel("depth (0 is the start)")
    bar = figure.colorbar(image, ax=panels, pad=0.015, fraction=0.03)
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=0)
    return figure
