"""How short tasks are shown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from surgery.colours import LABEL, VERDICTS
from surgery.reporting.formats import (
    interval,
    number,
    signed,
)
from surgery.reporting.sections.tables import new_table, title_of

Plain = Mapping[str, Any]


def table(result: Plain, section: Plain) -> RenderableType:
    """Scores of each metric, and the lm-eval commands, for each model."""
    paired = result["against"] is not None
    parts: list[RenderableType] = []
    for own in section["results"]:
        heads = ["score", *(["base", "change", "interval"] if paired else [])]
        table = new_table(title_of(result, section, own), ["metric", *heads], word=paired)
        table.columns[0].no_wrap, table.columns[0].overflow = False, "fold"  # names of tasks can be long
        for score in own["scores"]:
            values = [score["metric"], number(score["value"])]
            if paired:
                change = score["difference"]
                values += [number(score["base_value"]), signed(change["value"] if change else None), interval(change)]
            cells = [Text(value) for value in values]
            cells += [Text(score["verdict"] or "", style=VERDICTS.get(score["verdict"], ""))] if paired else []
            table.add_row(*cells)
        parts += [table, Text("lm-eval commands that give the same scores:", style=LABEL)]
        parts += [Text(command, style=LABEL, no_wrap=True, overflow="ignore") for command in own["commands"]]
    return Group(*parts)
