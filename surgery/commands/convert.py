"""``surgery convert``: a new checkpoint with an operation performed, or the plan of one."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from surgery.commands import console
from surgery.commands.app import app
from surgery.errors import UsageError

if TYPE_CHECKING:
    from surgery.conversion.plan import Plan

_OPTIONS = "Operation"


@app.command()
def convert(
    model: Annotated[str, typer.Argument(help="Model folder or hub id.")],
    to: Annotated[str, typer.Option("--to", help="Operation: ssmax.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Output folder [default: beside the model, -ssmax added].")
    ] = None,
    revision: console.RevisionOption = None,
    form: Annotated[
        str | None,
        typer.Option(
            help="anchored: 1 + s (ln n - ln N), starts as the old model [default]; paper: s ln n; "
            "bias: s ln n + b; logn: max(1, ln n / ln N), nothing to learn.",
            rich_help_panel=_OPTIONS,
        ),
    ] = None,
    reference_length: Annotated[
        int | None,
        typer.Option("--reference-length", "-N", help="N [default: the trained length].", rich_help_panel=_OPTIONS),
    ] = None,
    layers: Annotated[
        str | None,
        typer.Option(help="full [default], sliding, all, or numbers: 0-3,7.", rich_help_panel=_OPTIONS),
    ] = None,
    heads: Annotated[
        str | None, typer.Option(help="Query heads in these layers: 0-3,7 [default: all].", rich_help_panel=_OPTIONS)
    ] = None,
    start: Annotated[
        list[str] | None,
        typer.Option(help="Start value of a parameter: scale=0.1 (repeatable).", rich_help_panel=_OPTIONS),
    ] = None,
    link: Annotated[
        bool, typer.Option("--link", help="Hard-link unchanged shards.", rich_help_panel="Writing")
    ] = False,
    copy: Annotated[
        bool,
        typer.Option("--copy", help="Copy them even where the file system could share.", rich_help_panel="Writing"),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan, write nothing.", rich_help_panel="Writing")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace the output.", rich_help_panel="Writing")] = False,
    as_json: console.JsonOption = False,
    verbose: console.VerboseOption = False,
    quiet: console.QuietOption = False,
) -> None:
    """Convert a checkpoint. Reads headers, not weights; the source is never changed."""
    from surgery.conversion import execute, make_plan
    from surgery.conversion.execution import default_output

    console.setup(verbose=verbose, quiet=quiet)
    if link and copy:
        raise UsageError("--link and --copy exclude each other")
    given: dict[str, Any] = {
        "name": to,
        "form": form,
        "reference_length": reference_length,
        "layers": layers,
        "heads": heads,
        "start": _assignments(start),
    }
    operation = {name: value for name, value in given.items() if value is not None}
    prepared = make_plan(model, [operation], revision=revision)
    target = output or default_output(prepared)
    if dry_run:
        if as_json:
            console.emit("plan", {"output": target.as_posix(), **prepared.plan.to_dict()})
        else:
            _print_plan(prepared.plan, target)
        return
    with console.progress() as bar:
        task = bar.add_task("converting", total=None, rate="")

        def on_bytes(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total, rate=f"{done / 1e6:,.0f} MB")

        mode: Any = "link" if link else "copy" if copy else "auto"
        result = execute(prepared, target, mode=mode, force=force, on_bytes=on_bytes)
    if as_json:
        console.emit("conversion", result.to_dict())
        return
    if not quiet:
        _print_plan(prepared.plan, target)
    how = ", ".join(sorted(set(result.placed.values())))
    names = {name: console.printable(shlex.quote(str(path))) for name, path in (("out", target), ("source", model))}
    for line in (
        f"wrote {target} ({len(result.placed)} shard(s) {how})",
        f"Next: surgery verify {names['out']} --against {names['source']}",
    ):
        console.out.print(line, markup=False, highlight=False, soft_wrap=True)


def _assignments(pairs: list[str] | None) -> dict[str, float] | None:
    if not pairs:
        return None
    values = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        try:
            values[name.strip()] = float(value)
        except ValueError:
            equals = ""
        if not equals:
            raise UsageError(f"--start {pair!r}: not of the form name=number", hint="For example: --start scale=0.1")
    return values


def _print_plan(plan: Plan, target: Path) -> None:
    from rich.table import Table
    from rich.text import Text

    from surgery.conversion.card import summarize_numbers

    table = Table(title="Plan", title_justify="left", show_header=False)
    rows = [
        ("source", f"{plan.source['name']} ({plan.source['model_type']})"),
        ("output", f"{target} ({plan.model_type})"),
    ]
    for options, identity in zip(plan.operations, plan.identity, strict=True):
        values = ", ".join(f"{name} = {value:.6g}" for name, value in options["start"].items()) or "no parameters"
        heads = "all" if options["heads"] is None else summarize_numbers(options["heads"])
        rows += [
            (str(options["name"]), f"form {options['form']}, N = {options['reference_length']}, start {values}"),
            ("layers", f"{summarize_numbers(options['layers'])}; heads {heads}"),
            ("starts as", f"the source itself, {identity}" if identity else "a changed model"),
        ]
    shapes = {tensor.shape for tensor in plan.tensors}
    parameters = plan.bytes["new_tensors"] // 4
    rows += [
        ("new tensors", f"{len(plan.tensors)} of shape {', '.join(map(str, sorted(shapes)))}: {parameters} numbers")
        if plan.tensors
        else ("new tensors", "none"),
        ("unchanged", f"{len(plan.shards)} shard(s), {plan.bytes['source_tensors'] / 1e6:,.1f} MB of tensors"),
        ("skipped", _skipped(plan)),
        ("hash", plan.hash[:16]),
    ]
    for name, value in rows:
        if value:
            table.add_row(Text(name, style="dim"), Text(console.printable(value)))
    console.out.print(table)
    for warning in plan.warnings:
        console.err.print("note:", style="yellow", end=" ")
        console.err.print(warning, markup=False, highlight=False)


def _skipped(plan: Plan) -> str:
    from surgery.conversion.card import summarize_numbers

    reasons: dict[str, list[int]] = {}
    for key, reason in plan.skipped_layers.items():
        reasons.setdefault(reason, []).append(int(key.rsplit(":", 1)[1]))
    return "; ".join(f"layers {summarize_numbers(numbers)}: {reason}" for reason, numbers in reasons.items())
