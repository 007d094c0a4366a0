"""The result as a summary for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from surgery.colours import LABEL, NOTE, VERDICTS
from surgery.reporting import glance
from surgery.reporting.formats import HEADLINES, TIMES, clipped, number, typographic
from surgery.reporting.sections import view_of
from surgery.words import counted

Plain = Mapping[str, Any]


def terminal_summary(result: Plain) -> RenderableType:
    """Verdicts, one table for each section and the learned parameters, for ``rich``; no text is read as markup."""
    parts: list[RenderableType] = []
    for verdict in result["verdicts"]:
        headline = Text(HEADLINES[verdict["word"]], style=VERDICTS[verdict["word"]])
        if len(result["models"]) > 1:
            headline.append(f"  {clipped(result['models'][verdict['model']]['name'])}", style="not bold default")
        parts.append(headline)
        parts.append(Text(f"  Keep it? {glance.keep_it(result, verdict)}"))
        for finding in verdict["findings"]:
            line = Text("  ").append(finding["word"], style=VERDICTS[finding["word"]])
            parts.append(line.append(f"  {finding['measure']}. {typographic(finding['sentence'])}"))
        parts.append(Text())
    for section in result["sections"]:
        parts += [view_of(section["kind"]).table(result, section), Text()]
    parts.append(_below(result))
    parts += [Text(f"note: {warning}", style=NOTE) for warning in result["warnings"]]
    return Group(*parts)


def _below(result: Plain) -> Text:
    text = Text()
    for section in result["sections"]:
        note = view_of(section["kind"]).note(section)
        if note is not None:
            text.append(f"{note}\n", style=LABEL)
    for use in result["models"]:
        for learned in use["learned"]:
            text.append(f"{clipped(use['name'])}: ")
            text.append(f"{learned['name']} {learned['form']}: {len(learned['layers'])} layers {TIMES} ")
            text.append(f"{len(learned['heads'])} heads")
            if learned["moved_most"] == 0:
                text.append(", at their start values")
            elif learned["moved_most"] is not None:
                text.append(
                    f", moved by {number(learned['moved_mean'])} on average, {number(learned['moved_most'])} at most"
                )
            negative = len(learned["negative_heads"])
            text.append(f"; {counted(negative, 'head')} with a negative multiplier for some n\n" if negative else "\n")
    text.rstrip()
    return text
