"""``surgery families``: which families are supported, what applies to each, and which are refused with what reason."""

from __future__ import annotations

import sys
from collections import Counter
from typing import TYPE_CHECKING, Annotated

import typer

from surgery.commands import completion, console
from surgery.commands.help import CommandHelp, command_app
from surgery.errors import PlanRefusedError, UsageError

if TYPE_CHECKING:
    from surgery.operations.family_table import FamilyEntry


app = command_app()


@app.command(cls=CommandHelp)
def families(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            help="Only these, by model type or by transformers' class; by default all.",
            autocompletion=completion.families,
        ),
    ] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the table as a page in Markdown.")] = False,
    as_json: console.JsonOption = False,
) -> None:
    """List the supported families.

    Shows kinds of attention, operations that apply, notes, and families that are refused with the reason.
    """
    from surgery.operations.family_table import family_entries, find_families, refused_families

    if markdown and as_json:
        raise UsageError("--markdown and --json exclude each other")
    wanted: set[str] = set()
    errors: list[PlanRefusedError] = []
    for name in names or ():
        try:
            wanted.update(find_families(name))
        except PlanRefusedError as error:
            errors.append(error)
    if errors and not wanted:
        raise _together(errors)
    entries = [entry for entry in family_entries() if not wanted or entry.model_type in wanted]
    refused = {} if wanted else refused_families()
    if as_json:
        console.emit("families", {"families": [entry.to_dict() for entry in entries], "refused": refused})
    elif markdown:
        from surgery.reporting.families import families_page

        sys.stdout.write(families_page([entry.to_dict() for entry in entries], refused))
    else:
        _print(entries, refused)
    if errors:
        raise _together(errors)


def _together(errors: list[PlanRefusedError]) -> PlanRefusedError:
    """One error for all names that are not supported."""
    messages = dict.fromkeys(error.message for error in errors)
    hints = dict.fromkeys(error.hint for error in errors if error.hint)
    return PlanRefusedError("\n".join(messages), hint="\n".join(hints) or None)


# For a line of 80 characters; the page in Markdown has the full words.
_SHORT = {"some layers have none": "hybrid", "full or all sliding": "full or sliding", "by kind of layer": "by kind"}


def _short(text: str) -> str:
    for words, fewer in _SHORT.items():
        text = text.replace(words, fewer)
    return text


def _print(entries: list[FamilyEntry], refused: dict[str, str]) -> None:
    from rich.table import Table
    from rich.text import Text

    from surgery.anatomy.families import VERIFIED_WITH

    table = Table(box=None, pad_edge=False)
    for title in ("family", "attention", "positions", "operations"):
        table.add_column(title, no_wrap=True)
    # Once for all families that share it, because as a column it would be too wide.
    known: dict[str, list[str]] = {}
    for entry in entries:
        applies = " ".join(name for name, reason in entry.operations.items() if reason is None)
        against = [f"no {name}: {reason}" for name, reason in entry.operations.items() if reason is not None]
        for note in (*against, *entry.caveats):
            known.setdefault(note, []).append(entry.model_type)
        if entry.verified_with != VERIFIED_WITH:
            known.setdefault(f"verified with {', '.join(entry.verified_with)} alone", []).append(entry.model_type)
        cells = (entry.model_type, _short(entry.attention), _short(entry.positions), applies)
        table.add_row(*map(Text, cells))
    console.out.print(table)
    for note, names in known.items():
        console.say(f"{', '.join(names)}: {note}")
    reasons: dict[str, list[str]] = {}
    for model_type, reason in refused.items():
        reasons.setdefault(reason, []).append(model_type)
    for reason, names in reasons.items():
        line = f"refused: {', '.join(names)}: {reason}"
        console.say(line)
    counts = Counter(version for entry in entries for version in entry.verified_with)
    versions = ", ".join(f"{version} ({count})" for version, count in sorted(counts.items()))
    line = f"{len(entries)} {'family' if len(entries) == 1 else 'families'}, verified with transformers {versions}"
    console.say(line)
