"""One picture of a report, drawn for light and dark pages, as SVG and as PNG."""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import dataclass

from matplotlib.figure import Figure

from surgery.reporting.theme import DARK, LIGHT, Theme, drawn_in, to_png, to_svg


@dataclass(frozen=True)
class Drawing:
    """One picture: file stem, caption, alternative text, and its renderings."""

    stem: str
    caption: str
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


class FigureRenderer:
    """Renders figures for light and dark pages; pictures of one name get numbers."""

    def __init__(self) -> None:
        self._names: dict[str, int] = {}

    def __call__(self, name: str, caption: str, alt: str, draw: Callable[[Theme], Figure]) -> Drawing:
        """Draw one picture for light and dark pages.

        Args:
            name: of its files; a number is added where it is taken.
            caption: below it.
            alt: alternative text.
            draw: makes the figure in a theme.
        """
        number = self._names[name] = self._names.get(name, 0) + 1
        with drawn_in(LIGHT):
            figure = draw(LIGHT)
            png = to_png(figure, LIGHT)
            figure.set_layout_engine("none")  # laid out once is enough
            light = to_svg(figure)
        with drawn_in(DARK):
            dark = to_svg(draw(DARK))
        return Drawing(name if number == 1 else f"{name}-{number}", caption, alt, png, light, dark)


def _data_uri(svg: bytes) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(svg).decode("ascii")
