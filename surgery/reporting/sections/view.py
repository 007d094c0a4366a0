"""How a section of a result is shown."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from rich.console import RenderableType

from surgery.reporting.drawing import Drawing, FigureRenderer

Plain = Mapping[str, Any]


@dataclass(frozen=True)
class KeyFigure:
    """A number for the top of the page: of the model, and of its base where there is one."""

    label: str
    value: str
    base: str | None


def no_drawings(renderer: FigureRenderer, result: Plain, section: Plain) -> Iterator[Drawing]:
    """A section without pictures."""
    return iter(())


def no_key_figure(section: Plain, own: Plain) -> KeyFigure | None:
    """A section without a number for the top of the page."""
    return None


def no_note(section: Plain) -> str | None:
    """A section without a line below the tables."""
    return None


@dataclass(frozen=True)
class SectionView:
    """How the sections of one kind are shown; the tables of pages are templates, ``_<kind>.html.j2`` and ``.md.j2``.

    Attributes:
        table: the section in the terminal.
        drawings: its pictures, in order.
        key_figure: of one model, for the top of the page.
        note: a line below all tables of the terminal.
        is_neutral: whether its numbers are neither good nor bad by themselves; a page folds it away.
    """

    table: Callable[[Plain, Plain], RenderableType]
    drawings: Callable[[FigureRenderer, Plain, Plain], Iterator[Drawing]] = no_drawings
    key_figure: Callable[[Plain, Plain], KeyFigure | None] = no_key_figure
    note: Callable[[Plain], str | None] = no_note
    is_neutral: bool = False
