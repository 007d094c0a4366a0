"""The table of families as a page in Markdown, drawn from plain data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

_HEAD = """# Families

`surgery families --markdown` writes this page from `surgery/anatomy/families.toml`, which has one row for each family.
A tiny random model of each family goes through the test matrix: conversion, strict loading, identity at the start,
equality of presentations with random scales, comparison with an independent implementation, training, saving, and
loading without this package. The column `transformers` names the versions with which the family passed all of these.
"""


def families_page(entries: Sequence[Mapping[str, Any]], refused: Mapping[str, str]) -> str:
    """The page.

    Args:
        entries: families as ``FamilyEntry.to_dict`` gives them.
        refused: model type -> reason.
    """
    counts = Counter(version for entry in entries for version in entry["verified_with"])
    verified = ", ".join(f"{version} ({count})" for version, count in sorted(counts.items()))
    noun = "family" if len(entries) == 1 else "families"
    lines = [_HEAD, f"{len(entries)} {noun}, verified with transformers {verified}.", ""]
    operations = list(entries[0]["operations"])
    lines += [
        f"| family | transformers' class | attention | positions | {' | '.join(operations)} | transformers |",
        "|---" * (5 + len(operations)) + "|",
    ]
    for entry in entries:
        applies = ["no" if entry["operations"][name] else "yes" for name in operations]
        own = (entry["model_type"], f"`{entry['architecture']}`", entry["attention"], entry["positions"])
        cells = (*own, *applies, ", ".join(entry["verified_with"]))
        lines.append(f"| {' | '.join(cells)} |")
    notes = []
    for entry in entries:
        refusals = [f"no {name}: {reason}" for name, reason in entry["operations"].items() if reason]
        said = [*refusals, *entry["caveats"]]
        if said:
            notes.append(f"- **{entry['model_type']}**: {'; '.join(said)}.")
    if notes:
        lines += ["", "## What to know", "", *notes]
    if refused:
        lines += ["", "## Refused", "", "| family | why |", "|---|---|"]
    reasons: dict[str, list[str]] = {}
    for model_type, reason in refused.items():
        reasons.setdefault(reason, []).append(model_type)
    lines += [f"| {', '.join(names)} | {reason} |" for reason, names in sorted(reasons.items())]
    return "\n".join(lines) + "\n"
