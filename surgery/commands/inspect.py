"""``surgery inspect``: what a model's attention is, layer by layer, and what can be done to it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from surgery.commands import console
from surgery.commands.app import app

if TYPE_CHECKING:
    from rich.table import Table

    from surgery.anatomy import AttentionLayer, Rope
    from surgery.operations.inspection import Inspection


# What an operation cannot be planned without.
_NEEDED = {"screening": " --calibrate TEXTS (or --open, to train from there)"}


@app.command()
def inspect(
    model: Annotated[str, typer.Argument(help="Model folder or hub id.")],
    revision: console.RevisionOption = None,
    allow_unverified: console.UnverifiedOption = False,
    as_json: console.JsonOption = False,
    verbose: console.VerboseOption = False,
) -> None:
    """Show a model's attention layer by layer, and which operations apply. Reads headers only; no torch."""
    from surgery.operations.inspection import inspect as inspect_model

    console.setup(verbose=verbose)
    if allow_unverified:
        console.silence_transformers()
    inspection = inspect_model(model, revision=revision, allow_unverified=allow_unverified)
    if as_json:
        console.emit("inspection", inspection.to_dict())
        return
    console.out.print(_summary(inspection))
    console.out.print(_layer_table(inspection))
    for line in (*_nowhere(inspection), *_advice(inspection, console.printable(shlex.quote(model)))):
        console.out.print(line, markup=False, highlight=False, soft_wrap=True)


def _summary(inspection: Inspection) -> Table:
    from rich.table import Table
    from rich.text import Text

    anatomy = inspection.anatomy
    first = anatomy.layers[0]
    length = f"{anatomy.trained_length}"
    if anatomy.positions != anatomy.trained_length:
        length += f", extended to {anatomy.positions} positions"
    rows = {
        "model": inspection.name + (f" @ {inspection.commit[:12]}" if inspection.commit else ""),
        "family": anatomy.family.model_type + (" (unverified)" if anatomy.family.unverified else ""),
        "parameters": f"{anatomy.parameters / 1e6:,.1f} M in {anatomy.shards} shard(s), {anatomy.bytes / 1e6:,.0f} MB",
        "dtypes": ", ".join(f"{dtype} x {count}" for dtype, count in anatomy.dtypes.items()),
        "layers": f"{len(anatomy.layers)}",
        "heads": f"{first.heads} query, {first.kv_heads} key-value, size {first.head_dim}",
        "trained length": length,
        "rope": "; ".join(map(_rope, anatomy.ropes)) or "no rotary positions",
        "embeddings": "tied" if anatomy.tied_embeddings else "untied",
        "operated": "; ".join(map(_operated, (*anatomy.source_operations, *anatomy.operations))) or "no",
    }
    if anatomy.operations:
        rows["trained"] = _trained(inspection)
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for name, value in rows.items():
        table.add_row(Text(name, style="dim"), Text(console.printable(value)))
    return table


def _rope(rope: Rope) -> str:
    factor = rope.parameters.get("factor")
    return (
        (f"{rope.label}: " if rope.label else "")
        + rope.type
        + (f" x {factor:g}" if isinstance(factor, int | float) else "")
        + f", theta {rope.theta:g}"
    )


def _operated(options: Mapping[str, Any]) -> str:
    """What is in config.json, which may come from a newer version: nothing is taken for granted."""
    from surgery.conversion.card import summarize_numbers

    kind = options.get("form") or options.get("type")
    said = [f"{options.get('name')} ({kind})" if kind else str(options.get("name"))]
    if "reference_length" in options:
        said.append(f"N = {options['reference_length']}")
    for key in ("layers", "heads"):
        value = options.get(key)
        if isinstance(value, list | tuple) and all(isinstance(number, int) for number in value):
            said.append(f"{key} {summarize_numbers(value)}" if value else f"no {key}")
        elif key == "heads":
            said.append("all heads")
    return ", ".join(said)


def _trained(inspection: Inspection) -> str:
    from surgery.conversion.reverting import read_history

    entries = read_history(inspection.folder)
    return (
        ", then ".join(
            f"{entry.get('trained')}"
            + (f" ({entry['tokens']:,} tokens)" if isinstance(entry.get("tokens"), int) else "")
            for entry in entries
        )
        or "no: as converted"
    )


def _layer_table(inspection: Inspection) -> Table:
    """One row for each run of layers that are alike."""
    from rich.table import Table

    table = Table(title="Attention", title_justify="left")
    for column in ("layers", "kind", "window", "query norm", "soft cap", *_somewhere(inspection)):
        table.add_column(column, overflow="fold", min_width=max(map(len, column.split())))
    runs: list[list[AttentionLayer]] = []
    for layer in inspection.layers:
        if runs and _row(inspection, layer) == _row(inspection, runs[-1][-1]):
            runs[-1].append(layer)
        else:
            runs.append([layer])
    for run in runs:
        numbers = f"{run[0].index}" if len(run) == 1 else f"{run[0].index}-{run[-1].index}"
        table.add_row(numbers, *_row(inspection, run[0]))
    return table


def _row(inspection: Inspection, layer: AttentionLayer) -> tuple[str, ...]:
    applies = (console.printable(reasons[layer.index] or "applies") for reasons in _somewhere(inspection).values())
    return (
        layer.kind,
        str(layer.window or "-"),
        layer.query_norm or "-",
        f"{layer.softcap:g}" if layer.softcap else "-",
        *applies,
    )


def _somewhere(inspection: Inspection) -> dict[str, tuple[str | None, ...]]:
    """The operations that have a column: those that the same reason does not keep from every layer."""
    return {name: reasons for name, reasons in inspection.applies.items() if None in reasons or len(set(reasons)) > 1}


def _nowhere(inspection: Inspection) -> list[str]:
    """One line for each reason that keeps operations from every layer."""
    kept: dict[str, list[str]] = {}
    for name, reasons in inspection.applies.items():
        if name not in _somewhere(inspection) and reasons:
            kept.setdefault(str(reasons[0]), []).append(name)
    return [f"{', '.join(names)}: {console.printable(reason)}" for reason, names in kept.items()]


def _advice(inspection: Inspection, model: str) -> list[str]:
    found = [f"Next: surgery verify {model}"] if inspection.anatomy.operations else []
    if inspection.anatomy.family.unverified and not inspection.anatomy.operations:
        model += " --allow-unverified"
    return found + [
        f"Next: surgery convert --to {name} {model}{_NEEDED.get(name, '')}"
        for name, reasons in inspection.applies.items()
        if any(reason is None for reason in reasons)
    ]
