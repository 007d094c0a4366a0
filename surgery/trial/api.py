"""``try_model``: one trial from beginning to end, and ``plan_trial``: what it would do."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from surgery.errors import UsageError
from surgery.loading import RunOptions
from surgery.trial.folder import TrialFolder
from surgery.trial.plan import TrialPlan, make_plan
from surgery.trial.preparation import Preparation, prepare
from surgery.trial.result import TrialResult

if TYPE_CHECKING:
    from surgery.trial.run import OnPlan, OnProgress, OnStep


def plan_trial(
    model: str | Path,
    text: str | Path | Sequence[str | Path] = (),
    *,
    length: int | None = None,
    minutes: float = 10.0,
    revision: str | None = None,
    run: RunOptions | None = None,
) -> TrialPlan:
    """What :func:`try_model` would do, by the pace of this processor. It times the model itself, and may do more.

    Raises:
        UsageError, CheckpointError, PlanRefusedError: as :func:`try_model`.
    """
    return make_plan(_prepared(model, text, length, minutes, revision, run or RunOptions()), minutes)


def try_model(
    model: str | Path,
    text: str | Path | Sequence[str | Path] = (),
    *,
    length: int | None = None,
    minutes: float = 10.0,
    output: str | Path | None = None,
    revision: str | None = None,
    run: RunOptions | None = None,
    force: bool = False,
    on_plan: OnPlan | None = None,
    on_step: OnStep | None = None,
    on_progress: OnProgress | None = None,
) -> TrialResult:
    """Find out which operation helps a model at a length, each against its control; nothing is converted for good.

    Finished steps are kept in the output, and the same call goes on from there.

    Args:
        model: a folder or hub id that was not converted.
        text: files, folders and globs of UTF-8 text. A part of it is measured on and never calibrated on.
        length: tokens of the longest haystacks and passages; by default the longest of 4,096, 2,048, 1,024 and 512 that
            texts, positions and time allow.
        minutes: that it may take.
        output: folder of the trial; by default beside the current folder's files, named after the model.
        revision: branch, tag or commit of a hub model.
        run: device, dtype and attention backend.
        force: begin anew where the output holds another trial.
        on_plan: called with the plan before anything runs.
        on_step: called with the number of a step, the number of all steps, and the step, as it begins.
        on_progress: called with finished work and all work of a step, and what is done.

    Raises:
        UsageError: no text or too little, a length that the model does not have, too few minutes, or an output that
            holds something else.
        CheckpointError: the model cannot be read, or its family is not supported.
        PlanRefusedError: the model is converted already, or nothing can be tried on it.
    """
    folder = TrialFolder(Path(output) if output is not None else default_output(model))
    folder.check(force=force)
    prepared = _prepared(model, text, length, minutes, revision, run or RunOptions())
    from surgery.trial.run import TrialRun  # torch, only after the arguments were checked

    folder.path.parent.mkdir(parents=True, exist_ok=True)
    folder.lock.acquire()
    try:
        return TrialRun(str(model), revision, prepared, folder, on_step, on_progress).result(minutes, on_plan)
    finally:
        folder.lock.release()


def default_output(model: str | Path) -> Path:
    """``<model>-trial`` in the current folder."""
    return Path(f"{Path(model).name or 'model'}-trial")


def _prepared(
    model: str | Path,
    text: str | Path | Sequence[str | Path],
    length: int | None,
    minutes: float,
    revision: str | None,
    run: RunOptions,
) -> Preparation:
    if not minutes > 0:
        raise UsageError(f"--minutes {minutes:g}: must be above 0")
    return prepare(model, [text] if isinstance(text, str | Path) else list(text), length, revision, run)
