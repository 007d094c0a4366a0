"""``surgery convert``: a new checkpoint with operations applied, or the plan of a conversion."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from surgery.commands import completion, console
from surgery.commands.calibration import (
    CalibrationRequest,
    kept_work,
    plan_with_calibration,
    print_calibration,
    summary_of,
)
from surgery.commands.flags import run_flags, with_flags
from surgery.commands.help import command_app
from surgery.commands.operation_flags import (
    CALIBRATION,
    OperationHelp,
    calibration_flags,
    operation_flags,
    operations_from_flags,
)
from surgery.commands.push import PushOption, print_pushed
from surgery.errors import UsageError
from surgery.operations import OPERATIONS
from surgery.words import counted

if TYPE_CHECKING:
    from surgery.checkpoint.hub_upload import PushResult
    from surgery.conversion.execution import ConversionResult
    from surgery.conversion.plan import Plan, PreparedPlan

app = command_app()

WRITING = "Writing"

_To = Annotated[
    list[str],
    typer.Option(
        "--to",
        metavar="OPERATION",
        autocompletion=completion.operations,
        help=f"{', '.join(OPERATIONS)} (repeatable).",
    ),
]
_Calibrate = Annotated[
    list[str] | None,
    typer.Option(
        help="Text file, folder or quoted glob to calibrate on (repeatable). Runs the model.",
        rich_help_panel=CALIBRATION,
    ),
]
_Calibration = Annotated[
    Path | None, typer.Option(help="Use the values of an earlier calibration.json.", rich_help_panel=CALIBRATION)
]


@app.command(cls=OperationHelp)
@with_flags(
    options=operation_flags(),
    settings=calibration_flags(),
    run=run_flags("device", "dtype", "attn_implementation", "trust_remote_code"),
)
def convert(
    model: Annotated[str, typer.Argument(help="Model folder or hub id.")],
    to: _To,
    options: Mapping[str, Any],
    settings: Mapping[str, Any],
    run: Mapping[str, Any],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Output folder.", show_default="beside the model, operations added"),
    ] = None,
    revision: console.RevisionOption = None,
    calibrate: _Calibrate = None,
    calibration: _Calibration = None,
    link: Annotated[bool, typer.Option("--link", help="Hard-link unchanged shards.", rich_help_panel=WRITING)] = False,
    copy: Annotated[
        bool,
        typer.Option("--copy", help="Copy every shard, and record its SHA-256.", rich_help_panel=WRITING),
    ] = False,
    allow_unverified: console.UnverifiedOption = False,
    push: PushOption = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan, write nothing.", rich_help_panel=WRITING)
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Replace an earlier output of this tool.", rich_help_panel=WRITING)
    ] = False,
    as_json: console.JsonOption = False,
    verbose: console.VerboseOption = False,
    quiet: console.QuietOption = False,
) -> None:
    """Convert a checkpoint, or show the plan of a conversion.

    Reads headers, not weights, unless it calibrates. The source is never changed.
    """
    console.setup(verbose=verbose, quiet=quiet)
    if link and copy:
        raise UsageError("--link and --copy exclude each other")
    request = CalibrationRequest(text=calibrate, file=calibration, settings=settings, run=run)
    _check_before_work(output, None if dry_run else push, force=force, calibrates=bool(calibrate))
    if allow_unverified:
        console.silence_transformers()
    prepared = plan_with_calibration(
        model,
        operations_from_flags(to, options),
        request,
        revision,
        dry_run=dry_run,
        allow_unverified=allow_unverified,
        output=output,
    )
    if dry_run:
        _show_dry_run(prepared, output, force=force, as_json=as_json)
        return
    result, pushed = _write(prepared, output, "link" if link else "copy" if copy else "auto", push, force=force)
    if as_json:
        console.emit("conversion", {**result.to_dict(), **({"pushed": pushed.to_dict()} if pushed else {})})
    else:
        _show_result(prepared, result, pushed, model, quiet=quiet)


def _check_before_work(output: Path | None, push: str | None, *, force: bool, calibrates: bool) -> None:
    """What would stop the command after minutes of calibrating is checked first.

    Raises:
        UsageError: the output or the repository cannot be written.
    """
    if push is not None:
        from surgery.checkpoint.hub_upload import check_push

        check_push(push, force=force)
    if output is not None and calibrates:
        from surgery.checkpoint import check_output
        from surgery.checkpoint.disk import check_writable

        check_writable(check_output(output, force=force).parent)


def _show_dry_run(prepared: PreparedPlan, output: Path | None, *, force: bool, as_json: bool) -> None:
    from surgery.checkpoint import check_output
    from surgery.checkpoint.disk import check_writable
    from surgery.conversion.execution import default_output

    target, source = output or default_output(prepared), prepared.checkpoint.folder
    checked = check_output(target, force=True, source=source)  # the plan is also of use beside an earlier output
    check_writable(checked.parent)
    replaces = not force and checked.exists() and any(checked.iterdir())
    if as_json:
        console.emit("plan", {"output": target.as_posix(), **prepared.plan.to_dict()})
    else:
        _print_plan(prepared, target)
    if replaces:
        console.note(f"the output {target} holds an earlier output; the run needs --force, or another -o")
    if not as_json:
        console.next_run(*(["--force"] if replaces else []))


def _write(
    prepared: PreparedPlan, output: Path | None, mode: Any, push: str | None, *, force: bool
) -> tuple[ConversionResult, PushResult | None]:
    from surgery.checkpoint.hub_upload import push as push_folder
    from surgery.conversion.execution import default_output, execute

    with console.progress() as bar:
        task = bar.add_task("converting", total=None, rate="")

        def on_bytes(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total, rate=f"{done / 1e6:,.0f} MB")

        result = execute(prepared, output or default_output(prepared), mode=mode, force=force, on_bytes=on_bytes)
    if prepared.calibration is not None and (work := kept_work(prepared, output)).is_dir():
        shutil.rmtree(work)
    return result, None if push is None else push_folder(result.output, push, force=force)


def _show_result(
    prepared: PreparedPlan, result: ConversionResult, pushed: PushResult | None, model: str, *, quiet: bool
) -> None:
    if not quiet:
        _print_plan(prepared, result.output)
        if prepared.calibration is not None:
            print_calibration(prepared.calibration)
    how = ", ".join(sorted(set(result.placed.values())))
    console.say(f"wrote {console.near(str(result.output))} ({counted(len(result.placed), 'shard')} {how})")
    if pushed is not None:
        print_pushed(pushed.url, pushed.private)
    console.next_step("surgery", "verify", str(result.output), "--against", model)


def _print_plan(prepared: PreparedPlan, target: Path) -> None:
    rows = _plan_rows(prepared.plan, target)
    if prepared.calibration is not None:
        rows[-1:-1] = summary_of(prepared.calibration).facts.items()
    console.listing("Plan", [(name, value) for name, value in rows if value])
    for warning in prepared.plan.warnings:
        console.note(warning)


def _plan_rows(plan: Plan, target: Path) -> list[tuple[str, str]]:
    from surgery.conversion.card import describe
    from surgery.operations.layer_numbers import summarize_numbers

    rows = [
        ("source", f"{plan.source['name']} ({plan.source['model_type']})"),
        ("output", f"{console.near(str(target))} ({plan.model_type})"),
    ]
    for options in plan.operations:
        heads = options.get("heads")
        rows += [
            (str(options["name"]), describe(options)),
            ("layers", summarize_numbers(options["layers"]) + (f"; heads {summarize_numbers(heads)}" if heads else "")),
        ]
    shapes = ", ".join(map(str, sorted({tensor.shape for tensor in plan.tensors})))
    tensors = f"{len(plan.tensors)} of shape {shapes}: {plan.bytes['new_tensors'] // 4} numbers"
    changes = [name if value is not None else f"{name} removed" for name, value in plan.config.items()]
    return [
        *rows,
        ("starts as", _start(plan)),
        ("new tensors", tensors if plan.tensors else "none"),
        ("config.json", ", ".join(changes)),
        ("unchanged", f"{counted(len(plan.shards), 'shard')}, {plan.bytes['source_tensors'] / 1e6:,.1f} MB of tensors"),
        ("skipped", _skipped(plan)),
        ("hash", plan.hash[:16]),
    ]


def _start(plan: Plan) -> str:
    """Whether the output is the source at first, and where."""
    changing = [str(one["name"]) for one, same in zip(plan.operations, plan.identity, strict=True) if not same]
    if not changing:
        where = " and ".join(dict.fromkeys(filter(None, plan.identity)))
        return f"the source itself, {where}, until it is trained or calibrated"
    return "a changed model" + (f", by {' and '.join(changing)}" if len(plan.operations) > 1 else "")


def _skipped(plan: Plan) -> str:
    from surgery.operations.layer_numbers import summarize_numbers

    reasons: dict[str, list[int]] = {}
    for key, reason in plan.skipped_layers.items():
        reasons.setdefault(reason, []).append(int(key.rsplit(":", 1)[1]))
    return "; ".join(f"layers {summarize_numbers(numbers)}: {reason}" for reason, numbers in reasons.items())
