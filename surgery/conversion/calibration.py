"""``calibrate``: choose the start values of an operation on texts, whichever operation it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from surgery.conversion.options import option_errors
from surgery.errors import UsageError
from surgery.operations import OPERATIONS
from surgery.operations.base import Operation
from surgery.operations.calibration_record import CalibrationRecord

if TYPE_CHECKING:
    from pydantic import BaseModel

    from surgery.conversion.plan import PreparedPlan
    from surgery.loading import RunOptions

OnProgress = Callable[[int, int, str], None]


def calibrated_operation(operations: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The operation that a calibration is for: of several, the one that cannot do without. None if none has one."""
    able = [one for one in operations if one["name"] in OPERATIONS and OPERATIONS[one["name"]].calibrates]
    return next((one for one in able if OPERATIONS[one["name"]].needed_options), able[0] if able else None)


def read_calibration(path: Path, operations: Sequence[Mapping[str, Any]]) -> CalibrationRecord:
    """A calibration of one of these operations from its file.

    Raises:
        UsageError: none of them has a calibration.
        CheckpointError: the file is missing, or is no calibration of this operation.
    """
    chosen = calibrated_operation(operations)
    if chosen is None:
        raise UsageError(f"{' and '.join(str(one['name']) for one in operations)} takes no calibration")
    found: CalibrationRecord = OPERATIONS[chosen["name"]].calibration_package().read_calibration(path)
    return found


def calibrate(
    model: str | Path,
    text: Sequence[str | Path],
    operation: str,
    *,
    options: Mapping[str, Any] | None = None,
    settings: BaseModel | Mapping[str, Any] | None = None,
    revision: str | None = None,
    run: RunOptions | None = None,
    on_progress: OnProgress | None = None,
) -> CalibrationRecord:
    """Choose the start values of an operation for a model on texts, without training.

    Args:
        model: a folder or hub id that was not converted.
        text: files, folders and globs of UTF-8 text, of several kinds.
        operation: the name of one that has a calibration.
        options: of the operation, as of :func:`convert`.
        settings: of its calibration, as the flags of ``surgery convert --to OPERATION --calibrate``: a mapping, or
            ``OPERATIONS[operation].calibration_settings``.
        revision: branch, tag or commit of a hub model.
        run: device, dtype and attention backend.
        on_progress: called with finished work and all work, in tokens of a forward pass, and the current step in words.

    Returns:
        for ``convert(model, operation, calibration=...)``.

    Raises:
        UsageError: no calibration of this name, no text, too little of it, or a wrong setting.
        PlanRefusedError: the operation cannot be applied to this model.
        SurgeryError: no choice keeps the loss.
    """
    from pydantic import ValidationError

    able = [name for name, one in OPERATIONS.items() if one.calibrates]
    if operation not in able:
        raise UsageError(f"{operation!r} has no calibration", hint=f"Known: {', '.join(able)}.")
    if isinstance(settings, Mapping):
        try:
            settings = OPERATIONS[operation].settings_of_calibration(settings)
        except ValidationError as error:
            raise UsageError(f"settings: {option_errors(error)}") from error
    found: CalibrationRecord = (
        OPERATIONS[operation]
        .calibration_package()
        .calibrate(model, text, options=options, settings=settings, revision=revision, run=run, on_progress=on_progress)
    )
    return found


def uncalibrated(operations: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The operations with a mark on the one that a calibration is for, so that a plan can be made before it has run."""
    chosen = calibrated_operation(operations)
    return [OPERATIONS[one["name"]].uncalibrated(one) if one is chosen else one for one in operations]


def calibrate_in_plan(
    model: str | Path,
    text: Sequence[str | Path],
    operation: Operation,
    prepared: PreparedPlan,
    *,
    settings: BaseModel,
    run: RunOptions,
    revision: str | None = None,
    work: Path | None = None,
    on_progress: OnProgress | None = None,
) -> CalibrationRecord:
    """Calibrate one operation of a plan, with the plan's other operations on.

    Args:
        model: the plan's source.
        text: files, folders and globs of UTF-8 text.
        operation: to calibrate.
        prepared: a plan of :func:`uncalibrated` operations.
        settings: of the calibration.
        run: device, dtype and attention backend.
        revision: branch, tag or commit of a hub model.
        work: folder that keeps finished steps, if the operation's calibration keeps any.
        on_progress: as of :func:`calibrate`.
    """
    family = prepared.anatomy.family
    resolved = {str(options["name"]): options for options in prepared.plan.operations}
    found: CalibrationRecord = operation.calibration_package().calibrate(
        model,
        text,
        options=operation.options_to_calibrate(resolved[operation.name]),
        before=[options for name, options in resolved.items() if name != operation.name],
        family=family if family.unverified else None,
        settings=settings,
        revision=revision,
        run=run,
        on_progress=on_progress,
        **({"work": work} if operation.calibration_keeps_work() else {}),
    )
    return found
