"""The calibration of an operation from the command line: on texts, or from the file of an earlier one."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from surgery.commands import console
from surgery.commands.flags import spelled
from surgery.errors import UsageError
from surgery.operations import OPERATIONS
from surgery.operations.base import CalibrationSummary, Operation
from surgery.operations.calibration_record import CalibrationRecord

if TYPE_CHECKING:
    from pydantic import BaseModel
    from rich.table import Table

    from surgery.checkpoint import Checkpoint
    from surgery.conversion.plan import PreparedPlan
    from surgery.loading import RunOptions


@dataclass(frozen=True)
class CalibrationRequest:
    """What the flags of a calibration say: texts or a file, settings, and how the model is run."""

    text: list[str] | None
    file: Path | None
    settings: Mapping[str, Any]
    run: Mapping[str, Any]


def plan_with_calibration(
    model: str,
    operations: Sequence[Mapping[str, Any]],
    request: CalibrationRequest,
    revision: str | None,
    *,
    dry_run: bool,
    allow_unverified: bool = False,
    output: Path | None = None,
) -> PreparedPlan:
    """The plan of the operations, after calibrating on texts if there are any. A dry run does not calibrate.

    Finished steps are kept beside the output, where the calibration can go on from them; see :func:`kept_work`.

    Raises:
        UsageError: flags exclude each other, or belong to an operation that was not chosen.
    """
    from surgery.conversion.calibration import calibrated_operation, read_calibration, uncalibrated
    from surgery.conversion.plan import make_plan
    from surgery.data import read_documents
    from surgery.loading.pace import duration

    plan = partial(make_plan, model, revision=revision, allow_unverified=allow_unverified)
    calibrated = calibrated_operation(operations)
    check_request(request, operations, calibrated)
    if calibrated is None or not (request.file or request.text):
        return plan(operations)
    if request.file is not None:
        return plan(operations, calibration=read_calibration(request.file, operations))
    assert request.text is not None
    operation = OPERATIONS[calibrated["name"]]
    prepared = plan(uncalibrated(operations))
    settings, run = calibration_settings(operation.name, request.settings, request.run)
    passes = operation.calibration_passes(settings, calibrated, prepared.anatomy)
    read_documents(request.text)  # a wrong path is told before a time is announced
    seconds = expected_seconds(passes or (), prepared.checkpoint, run)
    if dry_run:
        time = f"would take {duration(seconds)} on this processor; it " if passes else ""
        console.note(f"the calibration {time}was not run")
        if passes:
            by_length: dict[int, float] = {}
            for tokens, count in passes:
                by_length[tokens] = by_length.get(tokens, 0) + count
            each = ", ".join(f"{count:,.0f} of {tokens:,} tokens" for tokens, count in by_length.items())
            console.note(f"its work, in forward passes: {each}")
        return prepared
    console.expect(seconds, duration(seconds), "the calibration")
    found = _calibrate(model, operation, prepared, request.text, settings, run, revision, kept_work(prepared, output))
    return plan(operations, calibration=found)


def _calibrate(
    model: str,
    operation: Operation,
    prepared: PreparedPlan,
    text: Sequence[str],
    settings: BaseModel,
    run: RunOptions,
    revision: str | None,
    work: Path,
) -> CalibrationRecord:
    """Calibrate with a bar. Ctrl-C says what it leaves."""
    from surgery.conversion.calibration import calibrate_in_plan

    console.silence_transformers()
    try:
        with console.progress() as bar:
            task = bar.add_task("calibrating", total=None, rate="")

            def on_progress(done: int, total: int, what: str) -> None:
                bar.update(task, completed=done, total=total, description=what, rate="")

            return calibrate_in_plan(
                model,
                text,
                operation,
                prepared,
                settings=settings,
                run=run,
                revision=revision,
                work=work,
                on_progress=on_progress,
            )
    except KeyboardInterrupt:
        kept_steps = f"finished steps are kept in {work}; run the same command to go on"
        console.note(kept_steps if work.is_dir() else "nothing of the calibration is kept")
        raise


def kept_work(prepared: PreparedPlan, output: Path | None) -> Path:
    """The folder beside the output in which an interrupted calibration finds its finished steps."""
    from surgery.conversion.execution import default_output

    target = output or default_output(prepared)
    return target.with_name(f"{target.name}.calibrating")


def expected_seconds(passes: Sequence[tuple[int, float]], checkpoint: Checkpoint, run: RunOptions) -> float:
    """About how long the passes of a calibration take on this processor."""
    from surgery.loading.pace import measure_pace, model_size

    size, pace = model_size(checkpoint, run), measure_pace()
    return sum(count * size.seconds(pace, tokens, tokens) for tokens, count in passes)


def check_request(
    request: CalibrationRequest, operations: Sequence[Mapping[str, Any]], calibrated: Mapping[str, Any] | None
) -> None:
    """Refuse flags that exclude each other or have no effect.

    Raises:
        UsageError: there are such flags.
    """
    given = next(iter(request.settings), None)
    flag = "--calibrate" if request.text else "--calibration" if request.file else given and _spelled(given)
    if calibrated is None and flag is not None:
        raise _foreign(flag, " or ".join(str(one["name"]) for one in operations), tuple(_calibrating()))
    if calibrated is not None:
        settings = _calibrating()
        for name in request.settings:
            owners = tuple(owner for owner, fields in settings.items() if name in fields)
            if calibrated["name"] not in owners:
                raise _foreign(_spelled(name), calibrated["name"], owners)
    if given is not None and not request.text:
        raise UsageError(
            f"{_spelled(given)} is a setting of the calibration, but no text is given",
            hint="Give texts: --calibrate 'texts/*.txt'.",
        )
    idle = [name for name, value in request.run.items() if value != "auto"]
    if idle and not request.text:
        raise UsageError(
            f"{spelled(idle[0])} has no effect without --calibrate: a conversion runs no model",
            hint=f"Give texts with --calibrate, or leave {spelled(idle[0])} out.",
        )
    if sum(map(bool, (request.text, request.file, (calibrated or {}).get("open")))) > 1:
        raise UsageError("--calibrate, --calibration and --open exclude each other")


def _calibrating() -> dict[str, Collection[str]]:
    """The names of the settings of each calibration, by operation."""
    schemas = {name: operation.calibration_settings for name, operation in OPERATIONS.items()}
    return {name: schema.model_fields.keys() for name, schema in schemas.items() if schema is not None}


def _foreign(flag: str, chosen: str, owners: Sequence[str]) -> UsageError:
    return UsageError(f"{flag} is no option of {chosen}", hint=f"It belongs to --to {', --to '.join(owners)}.")


def calibration_settings(
    operation: str, settings: Mapping[str, Any], run: Mapping[str, Any]
) -> tuple[BaseModel, RunOptions]:
    """The settings of a calibration and of running the model, from flags.

    Raises:
        UsageError: a value is not possible.
    """
    from pydantic import ValidationError

    from surgery.conversion.options import option_errors
    from surgery.loading import RunOptions

    try:
        return OPERATIONS[operation].settings_of_calibration(settings), RunOptions.model_validate(dict(run))
    except ValidationError as error:
        raise UsageError(f"calibration: {option_errors(error)}") from error


def _spelled(field: str) -> str:
    """The flag of a setting of any calibration."""
    from surgery.commands.operation_flags import calibration_flags

    flags = calibration_flags()
    owner = next((flag for flag in flags.values() if flag.second == field), flags.get(field))
    return owner.names[0] if owner else spelled(field)


def summary_of(calibration: CalibrationRecord) -> CalibrationSummary:
    """What a calibration chose, in words."""
    return OPERATIONS[calibration.operation].summarize_calibration(calibration.to_dict())


def chosen_table(summary: CalibrationSummary) -> Table:
    """The values that a calibration chose; one row for each run of equal layers."""
    from rich.table import Table

    table = Table(title="Calibration, by query head", title_justify="left")
    for column in summary.columns:
        table.add_column(column)
    runs: list[list[tuple[str, ...]]] = []
    for row in summary.rows:
        if runs and runs[-1][0][1:] == row[1:] and int(runs[-1][-1][0]) + 1 == int(row[0]):
            runs[-1].append(row)
        else:
            runs.append([row])
    for run in runs:
        first, last = run[0][0], run[-1][0]
        table.add_row(first if first == last else f"{first}-{last}", *run[0][1:])
    return table


def print_calibration(calibration: Any) -> None:
    """Print the held-out passages, the chosen values, and a remark on them."""
    from rich.table import Table

    summary = summary_of(calibration)
    table = Table(title="Held-out text", title_justify="left")
    for column in summary.held_out_columns:
        table.add_column(column)
    for name, *values in summary.held_out_rows:
        table.add_row(console.printable(Path(name).name), *values)
    console.out.print(table)
    console.out.print(chosen_table(summary))
    console.say(summary.remark)
    for warning in calibration.warnings:
        console.note(warning)
