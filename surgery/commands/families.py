"""``surgery families``: which families are supported, what applies to each, and which are refused with what reason."""

from __future__ import annotations

import sys
from collections import Counter
from typing import TYPE_CHECKING, Annotated

import typer

from surgery.commands import console
from surgery.commands.app import app
from surgery.errors import UsageError

if TYPE_CHECKING:
    from surgery.operations.catalog import FamilyEntry


@app.command()
def families(
    names: Annotated[list[str] | None, typer.Argument(help="Only these; by default all.")] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="The page docs/families.md.")] = False,
    as_json: console.JsonOption = False,
) -> None:
    """List the supported families: kinds of attention, which operations apply, what to know, and what is refused."""
    from surgery.anatomy import find_family
    from surgery.operations.catalog import family_entries, refused_families

    if markdown and as_json:
        raise UsageError("--markdown and --json exclude each other")
    wanted = {find_family(name).model_type for name in names or ()}
    entries = [entry for entry in family_entries() if not wanted or entry.model_type in wanted]
    refused = {} if wanted else refused_families()
    if as_json:
        console.emit("families", {"families": [entry.to_dict() for entry in entries], "refused": refused})
    elif markdown:
        from surgery.reporting.families import families_page

        sys.stdout.write(families_page([entry.to_dict() for entry in entries], refused))
    else:
        _print(entries, refused)


def _print(entries: list[FamilyEntry], refused: dict[str, str]) -> None:
    from rich.table import Table
    from rich.text import Text

    titles = ("family", "attention", "positions", "operations", "transformers", "to know")
    table = Table(*titles, box=None, pad_edge=False)
    for entry in entries:
        applies = ", ".join(name for name, reason in entry.operations.items() if reason is None)
        against = [f"no {name}: {reason}" for name, reason in entry.operations.items() if reason is not None]
        known = "; ".join([*against, *entry.caveats])
        versions = ", ".join(entry.verified_with)
        cells = (entry.model_type, entry.attention, entry.positions, applies, versions, known)
        table.add_row(*map(Text, cells))
    console.out.print(table)
    reasons: dict[str, list[str]] = {}
    for model_type, reason in refused.items():
        reasons.setdefault(reason, []).append(model_type)
    for reason, names in reasons.items():
        line = f"refused: {', '.join(names)}: {reason}"
        console.out.print(line, markup=False, highlight=False, soft_wrap=True)
    counts = Counter(version for entry in entries for version in entry.verified_with)
    versions = ", ".join(f"{version} ({count})" for version, count in sorted(counts.items()))
    line = f"{len(entries)} families, verified with transformers {versions}"
    console.out.print(line, markup=False, highlight=False)
