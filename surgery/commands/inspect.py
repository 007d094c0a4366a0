"""``surgery inspect``: the attention of a model, layer by layer, and the operations that apply."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from surgery.checkpoint import TORCH_DTYPES
from surgery.checkpoint.record import HISTORY_NAME
from surgery.colours import LABEL
from surgery.commands import console
from surgery.commands.help import CommandHelp, command_app
from surgery.commands.next_steps import texts_here
from surgery.operations import OPERATIONS
from surgery.words import counted

if TYPE_CHECKING:
    from pathlib import Path

    from rich.table import Table

    from surgery.models.inspection import OwnInspection
    from surgery.operations.inspection import Inspection


app = command_app()


@app.command(cls=CommandHelp)
def inspect(
    model: Annotated[str, typer.Argument(help="Model folder or hub id.")],
    revision: console.RevisionOption = None,
    allow_unverified: console.UnverifiedOption = False,
    as_json: console.JsonOption = False,
    verbose: console.VerboseOption = False,
) -> None:
    """Show the attention of a model and which operations apply.

    Reads headers only; needs no torch.
    """
    from surgery.models.inspection import OwnInspection
    from surgery.models.inspection import inspect as inspect_model

    console.setup(verbose=verbose)
    if allow_unverified:
        console.silence_transformers()
    inspection = inspect_model(model, revision=revision, allow_unverified=allow_unverified)
    if as_json:
        console.emit("inspection", inspection.to_dict())
        return
    if isinstance(inspection, OwnInspection):
        _show_own(inspection)
        return
    console.out.print(_summary(inspection))
    notes: dict[str, int] = {}
    console.out.print(_layer_table(inspection, notes))
    _print_calibration(inspection)
    for note in _notes(inspection, notes):
        console.say(_wrapped(console.printable(note)))
    for command in _advice(inspection, model):
        console.next_step("surgery", *command)


def _wrapped(text: str) -> str:
    """Lines that the terminal holds, broken between words."""
    width = console.out.width
    return textwrap.fill(text, width, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False)


def _show_own(inspection: OwnInspection) -> None:
    """A model of a class of this package: its sizes, and what each layer has learned."""
    from rich.table import Table

    checkpoint = inspection.checkpoint
    rows = {
        "model": inspection.name + (f" @ {inspection.commit[:12]}" if inspection.commit else ""),
        "family": str(checkpoint.config["model_type"]),
        "parameters": f"{checkpoint.total_parameters / 1e6:,.1f} M in {counted(len(checkpoint.shards), 'shard')}, "
        f"{checkpoint.total_bytes / 1e6:,.0f} MB",
        "dtypes": _dtypes(inspection.dtypes),
        **inspection.facts,
    }
    if HISTORY_NAME in checkpoint.other_files:
        rows["trained"] = _trained(checkpoint.folder)
    console.out.print(_facts(rows))
    table = Table(title="Heads", title_justify="left")
    for column in ("layer", *inspection.layers.columns):
        table.add_column(column)
    for number, row in enumerate(inspection.layers.rows):
        table.add_row(str(number), *row)
    console.out.print(table)


def _facts(rows: Mapping[str, str]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for name, value in rows.items():
        table.add_row(Text(name, style=LABEL), Text(console.printable(value)))
    return table


def _summary(inspection: Inspection) -> Table:
    anatomy = inspection.anatomy
    first = anatomy.layers[0]
    length = f"{anatomy.trained_length}"
    if anatomy.positions != anatomy.trained_length:
        length += f", extended to {anatomy.positions} positions"
    rows = {
        "model": inspection.name + (f" @ {inspection.commit[:12]}" if inspection.commit else ""),
        "family": anatomy.family.model_type + (" (unverified)" if anatomy.family.unverified else ""),
        "parameters": f"{anatomy.parameters / 1e6:,.1f} M in {counted(anatomy.shards, 'shard')}, "
        f"{anatomy.bytes / 1e6:,.0f} MB",
        "dtypes": _dtypes(anatomy.dtypes),
        "layers": f"{len(anatomy.layers)}",
        "heads": f"{first.heads} query, {first.kv_heads} key-value, size {first.head_dim}",
        "query norm": _by_layer(
            inspection, "query_norm", {None: "none", "head": "of each head", "all": "of all heads"}
        ),
        "soft cap": _by_layer(inspection, "softcap", {None: "none"}),
        "trained length": length,
        **{
            label: text
            for operation in OPERATIONS.values()
            for label, text in operation.facts_in_words(anatomy).items()
        },
        "embeddings": "tied" if anatomy.tied_embeddings else "untied",
        "operated": "; ".join(map(_operated, (*anatomy.source_operations, *anatomy.operations))) or "no",
    }
    if anatomy.operations:
        rows["trained"] = _trained(inspection.folder)
    return _facts(rows)


def _dtypes(counts: Mapping[str, int]) -> str:
    return ", ".join(
        f"{TORCH_DTYPES.get(dtype, dtype)} ({counted(count, 'tensor')})" for dtype, count in counts.items()
    )


def _print_calibration(inspection: Inspection) -> None:
    """What a calibration chose, saves and costs."""
    from surgery.commands.calibration import chosen_table
    from surgery.conversion.card import calibration_summary
    from surgery.conversion.records import read_history

    for options in inspection.anatomy.operations:
        if summary := calibration_summary(inspection.folder, options):
            when = ", before the training" if read_history(inspection.folder) else ""
            console.listing(f"Calibration of {options['name']}{when}", list(summary.facts.items()))
            console.out.print(chosen_table(summary))


def _by_layer(inspection: Inspection, attribute: str, words: Mapping[Any, str]) -> str:
    """What the layers with attention have of something; with their numbers where it is not the same for all."""
    from surgery.operations.layer_numbers import summarize_numbers

    layers: dict[str, list[int]] = {}
    for layer in inspection.layers:
        if layer.kind != "none":
            value = getattr(layer, attribute)
            layers.setdefault(words.get(value) or f"{value:g}", []).append(layer.index)
    if len(layers) == 1:
        return next(iter(layers))
    return "; ".join(f"{said} (layers {summarize_numbers(numbers)})" for said, numbers in layers.items())


def _operated(options: Mapping[str, Any]) -> str:
    """What is in config.json, which may come from a newer version: nothing is taken for granted."""
    from surgery.operations.layer_numbers import summarize_numbers

    kind = options.get("form") or options.get("type")
    said = [f"{options.get('name')} ({kind})" if kind else str(options.get("name"))]
    if options.get("reference_length"):
        said.append(f"N = {options['reference_length']}")
    for key in ("layers", "heads"):
        value = options.get(key)
        if isinstance(value, list | tuple) and all(isinstance(number, int) for number in value):
            said.append(f"{key} {summarize_numbers(value)}" if value else f"no {key}")
        elif key == "heads":
            said.append("all heads")
    return ", ".join(said)


def _trained(folder: Path) -> str:
    from surgery.conversion.records import read_history

    entries = read_history(folder)
    return (
        ", then ".join(
            f"{entry.get('trained')}"
            + (f" ({entry['tokens']:,} tokens)" if isinstance(entry.get("tokens"), int) else "")
            for entry in entries
        )
        or "no: as converted"
    )


def _layer_table(inspection: Inspection, notes: dict[str, int]) -> Table:
    """One row for each run of layers that are alike; a reason is a number here and a line below, from ``notes``."""
    from rich.table import Table

    table = Table(title="Attention", title_justify="left")
    operations = _with_column(inspection)
    rows: list[tuple[list[int], tuple[str, ...]]] = []
    for layer in inspection.layers:
        cells = (
            layer.kind,
            str(layer.window or "-"),
            *(_cell(inspection, name, layer.index, notes) for name in operations),
        )
        if rows and rows[-1][1] == cells:
            rows[-1][0].append(layer.index)
        else:
            rows.append(([layer.index], cells))
    found = [(f"{run[0]}" if len(run) == 1 else f"{run[0]}-{run[-1]}", *cells) for run, cells in rows]
    columns: list[tuple[str, ...]] = list(zip(("layers", "kind", "window", *operations), *found, strict=True))
    # On a narrow terminal a cell breaks between words, and never within one.
    narrow = sum(max(map(len, column)) + 3 for column in columns) + 1 > console.out.width
    for column in columns:
        words = [word for cell in column for word in cell.split()]
        table.add_column(column[0], width=max(map(len, words)) if narrow else None)
    for row in found:
        table.add_row(*row)
    return table


def _cell(inspection: Inspection, operation: str, layer: int, notes: dict[str, int]) -> str:
    """``applies``, or ``if asked (1)``, ``never (2)`` with the number of the note that says why."""
    choice = inspection.choice(operation, layer)
    if choice == "default":
        return "applies"
    return f"{choice} ({notes.setdefault(_why(inspection, operation, layer), len(notes) + 1)})"


def _why(inspection: Inspection, operation: str, layer: int) -> str:
    """Why an operation is not performed on a layer by itself, and what asks for it."""
    way = inspection.options[operation][layer]
    return f"{inspection.reasons[operation][layer]}" + (f"; {way} asks for it" if way else "")


def _with_column(inspection: Inspection) -> list[str]:
    """The operations that have a column: those that the same reason does not keep from every layer."""
    return [
        name
        for name, reasons in inspection.reasons.items()
        if None in reasons or len({_why(inspection, name, layer) for layer in range(len(reasons))}) > 1
    ]


def _notes(inspection: Inspection, notes: dict[str, int]) -> list[str]:
    """The reasons in the table, by number, and one line for each reason that keeps operations from every layer."""
    kept: dict[str, list[str]] = {}
    choices: dict[str, str] = {}
    columns = _with_column(inspection)
    for name in inspection.reasons:
        if name not in columns and inspection.layers:
            why = _why(inspection, name, 0)
            kept.setdefault(why, []).append(name)
            choices[why] = inspection.choice(name, 0)
    return [
        *(f"({number}) {why}" for why, number in notes.items()),
        *(f"{', '.join(names)} {choices[why]}: {why}" for why, names in kept.items()),
    ]


def _advice(inspection: Inspection, model: str) -> list[list[str]]:
    """The commands that come next. Of an operation that no layer has by default: with the layers that may be asked."""
    from surgery.conversion.source_search import find_source

    found: list[list[str]] = []
    texts = texts_here()
    unverified = inspection.anatomy.family.unverified
    if inspection.anatomy.operations:
        source = find_source(inspection.folder)
        found.append(["verify", model, *(["--against", source] if source else [])])
    elif not unverified and any(None in reasons for reasons in inspection.reasons.values()):
        found.append(["try", model, "--text", texts])
    for name, reasons in inspection.reasons.items():
        # One way alone: of several, as for positions that are scaled too, only the user knows which is meant.
        ways = set(filter(None, inspection.options[name]))
        way = next(iter(ways)) if len(ways) == 1 else ""
        if None in reasons or way.startswith("--layers"):
            asked = [] if None in reasons else way.split()
            allowed = ["--allow-unverified"] if unverified else []
            calibrated = ["--calibrate", texts] if OPERATIONS[name].calibration_settings is not None else []
            found.append(["convert", "--to", name, model, *allowed, *asked, *calibrated])
    return found
