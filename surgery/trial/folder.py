"""The folder of a trial: what is finished is kept there, and the same trial goes on from it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from surgery.checkpoint import load_json, replace_file
from surgery.checkpoint.disk import check_writable
from surgery.checkpoint.locks import FileLock
from surgery.checkpoint.names import quote
from surgery.checkpoint.output import check_outside_models
from surgery.errors import UsageError
from surgery.trial.plan import TrialPlan, read_plan

PLAN = "plan.json"
RESULT = "trial.json"
_SCHEMA = 1


class TrialFolder:
    """The files of a trial.

    Args:
        path: the folder, which need not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lock = FileLock(path.with_name(f".{path.name}.trial-lock"), f"the trial in {path.name}")

    @property
    def texts(self) -> Path:
        """The divided texts."""
        return self.path / "texts"

    @property
    def work(self) -> Path:
        """What candidates share while they are calibrated."""
        return self.path / "gradients"

    @property
    def models(self) -> Path:
        """Converted models, which are removed when the trial is finished."""
        return self.path / "models"

    @property
    def measurements(self) -> Path:
        """Finished measurements."""
        return self.path / "results"

    def calibration(self, name: str) -> Path:
        """The calibration of a candidate."""
        return self.path / f"{name}.json"

    def failure(self, name: str) -> Path:
        """Why a candidate's calibration found nothing."""
        return self.path / f"{name}.failed.json"

    def check(self, *, force: bool) -> None:
        """Check before anything runs that the folder is new, or holds a trial.

        Raises:
            UsageError: it is a file, or holds something else.
            CheckpointError: it is not writable.
        """
        given = quote(str(self.path))
        if self.path.exists() and not self.path.is_dir():
            raise UsageError(f"--output {given} is a file", hint="Pass a folder.")
        check_outside_models(self.path, given)
        check_writable(self.path)
        found = sorted(path.name for path in self.path.iterdir()) if self.path.is_dir() else []
        if found and PLAN not in found:
            raise UsageError(f"{given} holds a file that is not of a trial: {found[0]}", hint="Give another --output.")
        if force:
            self._clear()

    def plan(self, request: str, minutes: float) -> TrialPlan | None:
        """The plan of an earlier run of the same trial; None if there is none.

        Raises:
            UsageError: the folder holds the trial of something else.
        """
        path = self.path / PLAN
        if not path.is_file():
            return None
        content = load_json(path)
        if content.get("schema") != _SCHEMA or content["plan"]["request"] != request:
            raise UsageError(
                f"{quote(str(self.path))} holds a trial of another model, other texts or other options",
                hint="Give another --output, or begin anew with --force.",
            )
        plan = read_plan(content["plan"])
        if plan.minutes != minutes:
            raise UsageError(
                f"{quote(str(self.path))} holds a trial of {plan.minutes:g} minutes, not {minutes:g}",
                hint=f"Pass --minutes {plan.minutes:g} to go on with it, or begin anew with --force.",
            )
        return plan

    def write(self, name: str, content: dict[str, Any]) -> None:
        """Write a file of plain data, at once."""
        self.path.mkdir(parents=True, exist_ok=True)
        data = json.dumps(content, indent=2, allow_nan=False) + "\n"
        replace_file(self.path / name, data.encode())

    def write_plan(self, plan: TrialPlan) -> None:
        """Keep the plan, so that the same command goes on with it."""
        self.write(PLAN, {"schema": _SCHEMA, "plan": plan.to_dict()})

    def _clear(self) -> None:
        """Remove what an earlier trial wrote, and nothing else."""
        for path in (self.texts, self.work, self.models, self.measurements):
            shutil.rmtree(path, ignore_errors=True)
        for path in self.path.glob("*.json"):
            path.unlink()

    def remove_models(self) -> None:
        """Remove the converted models: their calibrations are kept."""
        shutil.rmtree(self.models, ignore_errors=True)
