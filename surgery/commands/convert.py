"""``surgery convert``: a new checkpoint with an operation performed, or the plan of one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from surgery.colours import LABEL, NOTE
from surgery.commands import completing, console
from surgery.commands.app import app
from surgery.commands.push import PushOption, say
from surgery.errors import UsageError

if TYPE_CHECKING:
    from surgery.conversion.plan import Plan

_OPTIONS = "Where, and from which values (any operation that has them)"
_SSMAX = "Operation ssmax"
_ROPE = "Operation rope"
_SCREENING = "Operation screening"


@app.command()
def convert(
    model: Annotated[str, typer.Argument(help="Model folder or hub id.")],
    to: Annotated[
        list[str],
        typer.Option(
            "--to",
            autocompletion=completing.operations,
            help="Operation: ssmax, screening, rope. Give it again for several; each option goes to those it fits.",
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Output folder.", show_default="beside the model, operations added"),
    ] = None,
    revision: console.RevisionOption = None,
    form: Annotated[
        list[str] | None,
        typer.Option(
            autocompletion=completing.forms,
            help="Of ssmax: anchored: 1 + s (ln n - ln N), starts as the old model; paper: s ln n; "
            "bias: s ln n + b; logn: max(1, ln n / ln N), nothing to learn. Of screening: gated; unit: no softmax. "
            "For one of several operations: screening=unit (repeatable).",
            show_default="anchored; gated",
            rich_help_panel=_OPTIONS,
        ),
    ] = None,
    reference_length: Annotated[
        int | None,
        typer.Option(
            "--reference-length",
            "-N",
            help="The length N of these equations.",
            show_default="the trained length",
            rich_help_panel=_SSMAX,
        ),
    ] = None,
    layers: Annotated[
        list[str] | None,
        typer.Option(
            autocompletion=completing.layers,
            help="full, sliding, chunked, all, or numbers: 0-3,7. For one of several: ssmax=all (repeatable).",
            show_default="full",
            rich_help_panel=_OPTIONS,
        ),
    ] = None,
    heads: Annotated[
        list[str] | None,
        typer.Option(
            help="Query heads in these layers: 0-3,7. For one of several operations: ssmax=0-3 (repeatable).",
            show_default="all",
            rich_help_panel=_OPTIONS,
        ),
    ] = None,
    start: Annotated[
        list[str] | None,
        typer.Option(
            help="Start value of a parameter of ssmax or screening: scale=0.1 (repeatable).", rich_help_panel=_OPTIONS
        ),
    ] = None,
    factor: Annotated[
        float | None,
        typer.Option(help="How many times as long the texts may be.", show_default="2", rich_help_panel=_ROPE),
    ] = None,
    type_: Annotated[
        str | None,
        typer.Option(
            "--type",
            help="yarn; ntk: a theta to match; linear: interpolated positions; theta: as --theta says.",
            show_default="yarn",
            rich_help_panel=_ROPE,
        ),
    ] = None,
    theta: Annotated[float | None, typer.Option(help="The new theta, of type theta.", rich_help_panel=_ROPE)] = None,
    theta_factor: Annotated[float | None, typer.Option(help="Or theta times this.", rich_help_panel=_ROPE)] = None,
    attention_factor: Annotated[
        float | None,
        typer.Option(help="Of yarn: times queries and keys.", show_default="0.1 ln factor + 1", rich_help_panel=_ROPE),
    ] = None,
    beta_fast: Annotated[
        float | None,
        typer.Option(help="Of yarn: kept from so many turns on.", show_default="32", rich_help_panel=_ROPE),
    ] = None,
    beta_slow: Annotated[
        float | None,
        typer.Option(help="Of yarn: interpolated up to so many turns.", show_default="1", rich_help_panel=_ROPE),
    ] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="In place of a scaling that the model has.", rich_help_panel=_ROPE)
    ] = False,
    original_length: Annotated[
        int | None,
        typer.Option(
            help="With --replace: length before it.", show_default="as config.json says", rich_help_panel=_ROPE
        ),
    ] = None,
    calibrate: Annotated[
        list[str] | None,
        typer.Option(
            help="Text file, folder or quoted glob to choose thresholds and windows on (repeatable). Runs the model.",
            rich_help_panel=_SCREENING,
        ),
    ] = None,
    max_loss_increase: Annotated[
        float | None,
        typer.Option(
            help="The loss of no held-out passage may rise by more, in nats per token.",
            show_default="0.005",
            rich_help_panel=_SCREENING,
        ),
    ] = None,
    budget: Annotated[
        float | None,
        typer.Option(
            help="Choose by mass instead: no head loses a greater share of its softmax mass.",
            rich_help_panel=_SCREENING,
        ),
    ] = None,
    lengths: Annotated[
        str | None,
        typer.Option(help="Tokens per calibration passage.", show_default="1024,4096", rich_help_panel=_SCREENING),
    ] = None,
    passages: Annotated[
        str | None,
        typer.Option(
            help="Passages to observe and to hold out, of the shortest length.",
            show_default="8,4",
            rich_help_panel=_SCREENING,
        ),
    ] = None,
    softness: Annotated[
        float | None,
        typer.Option(help="Width of the ramp below each threshold; 0 is hard.", rich_help_panel=_SCREENING),
    ] = None,
    windows: Annotated[
        console.Windows | None,
        typer.Option(
            help="A window for each head, or one for the heads of each key-value group, so that its cache can shrink.",
            show_default="head",
            rich_help_panel=_SCREENING,
        ),
    ] = None,
    calibration: Annotated[
        Path | None,
        typer.Option(help="Take the values of an earlier calibration.json instead.", rich_help_panel=_SCREENING),
    ] = None,
    opened: Annotated[
        bool,
        typer.Option("--open", help="Start with everything accepted, to train from there.", rich_help_panel=_SCREENING),
    ] = False,
    sinks: Annotated[
        int | None,
        typer.Option(
            help="First tokens of a document that are always kept.", show_default="4", rich_help_panel=_SCREENING
        ),
    ] = None,
    keep_softmax: Annotated[
        str | None,
        typer.Option(help="In place of --layers: every full-attention layer but these.", rich_help_panel=_SCREENING),
    ] = None,
    renormalisation: Annotated[
        float | None,
        typer.Option(
            help="Of the form unit, where it starts between gated (1) and the unit (0).",
            show_default="0, with --open 1",
            rich_help_panel=_SCREENING,
        ),
    ] = None,
    device: console.DeviceOption = "auto",
    dtype: console.DtypeOption = "auto",
    attn_implementation: console.AttentionOption = None,
    link: Annotated[
        bool, typer.Option("--link", help="Hard-link unchanged shards.", rich_help_panel="Writing")
    ] = False,
    copy: Annotated[
        bool,
        typer.Option(
            "--copy",
            help="Copy them even where blocks could be shared, and record their SHA-256.",
            rich_help_panel="Writing",
        ),
    ] = False,
    allow_unverified: console.UnverifiedOption = False,
    push: PushOption = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan, write nothing.", rich_help_panel="Writing")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Replace an earlier output of this tool.", rich_help_panel="Writing")
    ] = False,
    as_json: console.JsonOption = False,
    verbose: console.VerboseOption = False,
    quiet: console.QuietOption = False,
) -> None:
    """Convert a checkpoint. Reads headers, not weights, unless it calibrates; the source is never changed."""
    from surgery.checkpoint import check_output
    from surgery.checkpoint.disk import check_writable
    from surgery.checkpoint.hub_upload import check_push
    from surgery.checkpoint.hub_upload import push as push_folder
    from surgery.commands.calibrating import Asked, numbers, plan_with_calibration, print_calibration
    from surgery.conversion import execute
    from surgery.conversion.execution import default_output

    console.setup(verbose=verbose, quiet=quiet)
    if link and copy:
        raise UsageError("--link and --copy exclude each other")
    options = {
        "form": form,
        "reference_length": reference_length,
        "start": _assignments(start),
        "factor": factor,
        "type": type_,
        "theta": theta,
        "theta_factor": theta_factor,
        "attention_factor": attention_factor,
        "beta_fast": beta_fast,
        "beta_slow": beta_slow,
        "replace": replace or None,
        "original_length": original_length,
        "layers": layers,
        "heads": heads,
        "open": opened or None,
        "sinks": sinks,
        "keep_softmax": keep_softmax,
        "renormalisation": renormalisation,
    }
    asked = Asked(
        text=calibrate,
        file=calibration,
        settings={
            "max_loss_increase": max_loss_increase,
            "budget": budget,
            "lengths": numbers("--lengths", lengths),
            "passages": numbers("--passages", passages),
            "softness": softness,
            "windows": windows and windows.value,
        },
        run={"device": device, "dtype": dtype, "attn_implementation": attn_implementation},
    )
    if push is not None and not dry_run:
        check_push(push, force=force)  # before any work
    if output is not None and calibrate:
        # Before minutes of calibrating, and again once the source is known.
        check_writable(check_output(output, force=force).parent)
    if allow_unverified:
        console.silence_transformers()
    prepared = plan_with_calibration(
        model,
        operations_from_flags(to, options),
        asked,
        revision,
        dry_run=dry_run,
        allow_unverified=allow_unverified,
    )
    target = output or default_output(prepared)
    if dry_run:
        check_writable(check_output(target, force=force, source=prepared.checkpoint.folder).parent)
        if as_json:
            console.emit("plan", {"output": target.as_posix(), **prepared.plan.to_dict()})
        else:
            _print_plan(prepared.plan, target)
            console.next_step("the same without --dry-run")
        return
    with console.progress() as bar:
        task = bar.add_task("converting", total=None, rate="")

        def on_bytes(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total, rate=f"{done / 1e6:,.0f} MB")

        mode: Any = "link" if link else "copy" if copy else "auto"
        result = execute(prepared, target, mode=mode, force=force, on_bytes=on_bytes)
    pushed = None if push is None else push_folder(result.output, push, force=force)
    if as_json:
        console.emit("conversion", {**result.to_dict(), **({"pushed": pushed.to_dict()} if pushed else {})})
        return
    if not quiet:
        _print_plan(prepared.plan, target)
        if prepared.calibration is not None:
            print_calibration(prepared.calibration)
    how = ", ".join(sorted(set(result.placed.values())))
    written = f"wrote {target} ({len(result.placed)} shard(s) {how})"
    console.out.print(written, markup=False, highlight=False, soft_wrap=True)
    if pushed is not None:
        say(pushed.url, pushed.private)
    console.next_step("surgery", "verify", str(target), "--against", model)


def operations_from_flags(names: Sequence[str], given: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Each chosen operation with the options that its schema has.

    Args:
        names: of the operations, in order.
        given: options by name, None for those that were not given. A list holds texts of which each may be meant for
            one operation: ``ssmax=0-3``.

    Raises:
        UsageError: an operation is unknown, or an option fits none that was chosen.
    """
    from surgery.operations import OPERATIONS

    unknown = [name for name in names if name not in OPERATIONS]
    if unknown:
        raise UsageError(f"unknown operation {unknown[0]!r}", hint=f"Known: {', '.join(OPERATIONS)}.")
    chosen: dict[str, dict[str, Any]] = {name: {"name": name} for name in names}
    if len(chosen) < len(names):
        raise UsageError(f"the operation {max(names, key=names.count)!r} is given twice")
    for option, value in given.items():
        if value is None:
            continue
        flag = "--" + option.replace("_", "-")
        fitting = [name for name in chosen if option in OPERATIONS[name].options.model_fields]
        if not fitting:
            owners = [name for name, one in OPERATIONS.items() if option in one.options.model_fields]
            raise UsageError(
                f"{flag} is no option of {' or '.join(chosen)}", hint=f"It belongs to --to {', --to '.join(owners)}."
            )
        for target, text in _addressed(flag, value, fitting) if isinstance(value, list) else [(None, value)]:
            for name in fitting if target is None else [target]:
                chosen[name][option] = text
    return list(chosen.values())


def _addressed(flag: str, texts: list[str], fitting: Sequence[str]) -> list[tuple[str | None, str]]:
    """``ssmax=0-3`` as (ssmax, 0-3); what is for all of them (None) comes first, so that the exceptions stand."""
    found: list[tuple[str | None, str]] = []
    for text in texts:
        name, equals, value = text.rpartition("=")
        if equals and name not in fitting:
            raise UsageError(
                f"{flag} {text!r}: {name!r} is not among the chosen operations that have this option",
                hint=f"For example: {flag} {fitting[0]}={value}",
            )
        found.append((name if equals else None, value))
    targets = [target for target, _ in found]
    if len(set(targets)) < len(targets):
        raise UsageError(f"{flag} is given twice for the same operation: {', '.join(texts)}")
    return sorted(found, key=lambda item: item[0] is not None)


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

    from surgery.conversion.card import describe, summarize_numbers

    table = Table(title="Plan", title_justify="left", show_header=False)
    rows = [
        ("source", f"{plan.source['name']} ({plan.source['model_type']})"),
        ("output", f"{target} ({plan.model_type})"),
    ]
    for options in plan.operations:
        heads = options.get("heads")
        rows += [
            (str(options["name"]), describe(options)),
            ("layers", summarize_numbers(options["layers"]) + (f"; heads {summarize_numbers(heads)}" if heads else "")),
        ]
    changing = [str(one["name"]) for one, same in zip(plan.operations, plan.identity, strict=True) if not same]
    if not changing:
        starts = "the source itself, " + " and ".join(dict.fromkeys(filter(None, plan.identity)))
    else:
        starts = "a changed model" + (f", by {' and '.join(changing)}" if len(plan.operations) > 1 else "")
    changes = plan.config.items()
    shapes = {tensor.shape for tensor in plan.tensors}
    parameters = plan.bytes["new_tensors"] // 4
    rows += [
        ("starts as", starts),
        ("new tensors", f"{len(plan.tensors)} of shape {', '.join(map(str, sorted(shapes)))}: {parameters} numbers")
        if plan.tensors
        else ("new tensors", "none"),
        ("config.json", ", ".join(name if value is not None else f"{name} removed" for name, value in changes)),
        ("unchanged", f"{len(plan.shards)} shard(s), {plan.bytes['source_tensors'] / 1e6:,.1f} MB of tensors"),
        ("skipped", _skipped(plan)),
        ("hash", plan.hash[:16]),
    ]
    for name, value in rows:
        if value:
            table.add_row(Text(name, style=LABEL), Text(console.printable(value)))
    console.out.print(table)
    for warning in plan.warnings:
        console.err.print(Text.assemble(("note: ", NOTE), console.printable(warning)), highlight=False)


def _skipped(plan: Plan) -> str:
    from surgery.conversion.card import summarize_numbers

    reasons: dict[str, list[int]] = {}
    for key, reason in plan.skipped_layers.items():
        reasons.setdefault(reason, []).append(int(key.rsplit(":", 1)[1]))
    return "; ".join(f"layers {summarize_numbers(numbers)}: {reason}" for reason, numbers in reasons.items())
