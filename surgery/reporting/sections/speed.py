"""How speed and memory are shown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from surgery.reporting.formats import (
    number,
)
from surgery.reporting.sections.tables import new_table, title_of

Plain = Mapping[str, Any]


def table(result: Plain, section: Plain) -> RenderableType:
    """Rates of each case, one table for each model."""
    paired = result["against"] is not None
    parts: list[RenderableType] = []
    for own in section["results"]:
        table = new_table(
            title_of(result, section, own), ["case", "tokens/s", *(["base", "time, base = 1"] if paired else [])]
        )
        for case in own["cases"]:
            values = [case["case"], number(case["rate"], 1)]
            values += [number(case["base_rate"], 1), number(case["time_ratio"], 3)] if paired else []
            table.add_row(*map(Text, values))
        parts.append(table)
    return Group(*parts)
