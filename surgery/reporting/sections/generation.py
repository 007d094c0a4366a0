"""How samples of generation are shown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from surgery.colours import LABEL
from surgery.reporting.formats import clipped, one_line
from surgery.words import counted

Plain = Mapping[str, Any]


def table(result: Plain, section: Plain) -> RenderableType:
    """Each prompt with what every model adds, the base first; one line where all of them add the same."""
    names = {number: use["name"] for number, use in enumerate([*result["models"], result["against"]]) if use}
    results = sorted(section["results"], key=lambda own: own["model"] != len(result["models"]))
    parts: list[RenderableType] = [Text(section["title"])]
    for number, prompt in enumerate(section["prompts"]):
        added = [(names[own["model"]], own["continuations"][number]) for own in results]
        compared = [one["same"] for _, one in added if one["same"] is not None]
        if compared and all(compared):
            same = f"{clipped(prompt['document'])}: all add the same {counted(added[0][1]['tokens'], 'token')}"
            parts.append(Text(same, style=LABEL))
            continue
        parts.append(Text(clipped(prompt["document"]), style=LABEL))
        lines = Table.grid(padding=(0, 1))
        for name, one in added:
            lines.add_row(Text(f"  {clipped(name, 24)}"), Text(one_line(one["text"])))
        parts.append(lines)
    return Group(*parts)
