"""Figures in the colours of a palette: colour scales, axes, and files that are the same for the same data."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from surgery import colours
from surgery.colours import DARK_TEXT, LIGHT_TEXT, Palette


class Theme(Palette):
    """A palette with the colour scales that figures are drawn with."""

    def diverging(self) -> LinearSegmentedColormap:
        """Blue below the start value, orange above it, the colour of the page at it."""
        return LinearSegmentedColormap.from_list(f"surgery-{self.name}", [self.low, self.middle, self.high])

    def sequential(self) -> LinearSegmentedColormap:
        """From the colour of the page to full blue: 0 to 1."""
        return LinearSegmentedColormap.from_list(f"surgery-{self.name}-0-1", [self.middle, self.model, self.full])

    def over(self, cell: tuple[float, float, float, float]) -> str:
        """Text on a coloured cell: light or dark, whichever has the greater contrast by WCAG's luminance."""
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in cell[:3]]
        luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
        return LIGHT_TEXT if luminance < 0.179 else DARK_TEXT


LIGHT = Theme(**vars(colours.LIGHT))
DARK = Theme(**vars(colours.DARK))


@contextmanager
def drawn_in(theme: Theme) -> Iterator[None]:
    """Draw with the colours of a theme inside the block."""
    settings: Any = {
        "text.parse_math": False,  # a model's name may hold a dollar sign
        "text.color": theme.ink,
        "axes.labelcolor": theme.quiet,
        "axes.edgecolor": theme.rule,
        "axes.facecolor": "none",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
        "axes.titlesize": 10,
        "axes.titlecolor": theme.ink,
        "axes.titlelocation": "left",
        "axes.labelsize": 9,
        "xtick.color": theme.quiet,
        "ytick.color": theme.quiet,
        "xtick.labelsize": 8.5,
        "ytick.labelsize": 8.5,
        "legend.frameon": False,
        "legend.fontsize": 9,
        "font.family": ["DejaVu Sans"],
        "hatch.linewidth": 0.6,
        "svg.hashsalt": "surgery",
        "svg.fonttype": "path",
    }
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # names may be in any script
        yield


def new_figure(width: float = 8.0, height: float = 3.4) -> Figure:
    """A figure without pyplot: no global state, no display."""
    return Figure(figsize=(width, height), layout="constrained")


def grid(axes: Axes, theme: Theme) -> None:
    """Horizontal lines to read values by."""
    axes.grid(axis="y", color=theme.rule, linewidth=0.7)
    axes.tick_params(length=0)
    axes.spines["left"].set_visible(False)


def to_png(figure: Figure, theme: Theme) -> bytes:
    """PNG bytes on the theme's background, the same for the same data."""
    return _save(figure, "png", dpi=160, facecolor=theme.page, metadata={"Software": None})


def to_svg(figure: Figure) -> bytes:
    """SVG bytes on a transparent background, the same for the same data."""
    return _save(figure, "svg", transparent=True, metadata={"Date": None, "Creator": None})


def _save(figure: Figure, form: str, **options: Any) -> bytes:
    buffer = BytesIO()
    figure.savefig(buffer, format=form, **options)
    return buffer.getvalue()
