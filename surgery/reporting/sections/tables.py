"""What the tables of the terminal share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from surgery.colours import LABEL
from surgery.reporting.formats import clipped

Plain = Mapping[str, Any]


def new_table(title: str, heads: Sequence[str], *, word: bool = False) -> Table:
    """A table with a title and right-aligned columns.

    Args:
        title: above it.
        heads: of the columns.
        word: add a column for verdicts.
    """
    table = Table(title=Text(title), title_justify="left", box=None, pad_edge=False, header_style=LABEL)
    for head in heads:
        table.add_column(Text(head), justify="right", no_wrap=True)
    if word:
        table.add_column("", no_wrap=True)
    return table


def title_of(result: Plain, section: Plain, own: Plain) -> str:
    """The section, and the model where there are several."""
    name = clipped(result["models"][own["model"]]["name"])
    return section["title"] + (f": {name}" if len(result["models"]) > 1 else "")


def plain_table(result: Plain, section: Plain) -> RenderableType:
    """The numbers and strings of each result by name: for a kind of section that has no table of its own."""
    tables = []
    for own in section["results"]:
        table = new_table(title_of(result, section, own), ["", "value"])
        for name, value in own.items():
            if name != "model" and isinstance(value, int | float | str):
                table.add_row(
                    Text(name.replace("_", " ")), Text(f"{value:g}" if isinstance(value, float) else str(value))
                )
        tables.append(table)
    return Group(*tables)
