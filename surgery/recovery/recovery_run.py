"""A whole run: the model that is trained, its controls, the comparison of all of them, and the result on disk."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from surgery.checkpoint import check_output, sha256_json
from surgery.recovery.comparison import Comparison, compare
from surgery.recovery.control_plan import IS_SOURCE
from surgery.recovery.layout import Variant
from surgery.recovery.model_run import ModelRun, RunSetup, TrainedModel
from surgery.recovery.origin import find_origin
from surgery.recovery.result import FinetuneResult
from surgery.recovery.result_folder import plan_space
from surgery.recovery.run_record import log_numbers, run_record, training_entry
from surgery.recovery.trained_weights import TrainedWeights
from surgery.training.errors import DivergedError
from surgery.training.folder import TrainingFolder
from surgery.training.interruption import stop_on_signals
from surgery.training.processes import is_first, on_first
from surgery.training.progress import progress_of

if TYPE_CHECKING:
    from surgery.training.callbacks import StopCallback
    from surgery.training.held_out import Losses


@dataclass(frozen=True)
class _Control:
    """A control after its training.

    Attributes:
        model: freed; None if nothing was trained, or the training diverged.
        weights: that are written; None in other processes too.
        note: for users.
        is_source: whether nothing was trained, so that it is the source.
    """

    model: TrainedModel | None = None
    weights: TrainedWeights | None = None
    note: str | None = None
    is_source: bool = False


class RecoveryRun:
    """The parts of one run, in order."""

    def __init__(self, setup: RunSetup, output: Path) -> None:
        self.setup, self.output = setup, output
        self.folder = TrainingFolder(output)

    def run(self, *, resume: bool, force: bool) -> FinetuneResult:
        """Train, compare, write."""
        from surgery.training.arguments import training_arguments
        from surgery.training.callbacks import StopCallback

        setup = self.setup
        written = [control for control in setup.plan.controls if control.output is not None]
        plan_space(setup.checkpoint, self.output, 1 + len(written))
        # Checked before the folder is made, so that a wrong device or tracker leaves nothing behind.
        for stage in setup.stage_recipes():
            training_arguments(stage.training_options(), self.folder.path, 1, setup.device)
        settings = setup.recipe.model_dump(mode="json")
        start = on_first(lambda: self.folder.begin(settings, self._identity(), resume=resume, force=force))
        self.setup = setup = setup.converted(self.folder.path / "converted")
        # Now, since the checkpoint may be rotated away.
        resumed_from = progress_of(start).step if start is not None else None
        stop = StopCallback()
        with stop_on_signals(stop):
            trained = ModelRun(setup, "operated", self.folder, stop).run(start)
            assert trained is not None
            weights = self._take_weights(trained, "operated")
            controls = self._controls(stop)
        losses = dict(trained.losses)
        learned = {"source": 0, "converted": 0, "recovered": trained.trained_count}
        for name, control in controls.items():
            learned[name] = control.model.trained_count if control.model is not None else 0
            if control.model is not None:
                losses.update(control.model.losses)
        if "untouched" in controls and controls["untouched"].is_source and "source" in losses:
            losses["untouched"] = losses["source"]
        compared = losses and setup.recipe.needs_operations
        notes: dict[str, str] = {name: control.note for name, control in controls.items() if control.note is not None}
        comparison = compare(losses, learned, notes) if compared else None
        result = self._result(trained, comparison, resumed_from, controls)

        def write() -> None:
            assert weights is not None  # the first process has them
            for name, control in controls.items():
                if control.weights is not None:
                    self._write_control(name, control, losses, force=force)
            self._write(trained, weights, result, controls, force=force)

        self._tell({"event": "writing"})
        on_first(write)
        self._tell({"event": "done", **result.to_dict()})
        return result

    def _take_weights(self, trained: TrainedModel, variant: Variant) -> TrainedWeights | None:
        """Copy the weights out, in the first process, and free the model."""
        weights = TrainedWeights(trained, self.setup, variant) if is_first() else None
        trained.model = None
        return weights

    def _controls(self, stop: StopCallback) -> dict[Variant, _Control]:
        """Train each control; a control that diverges is a result and does not end the run."""
        found: dict[Variant, _Control] = {}
        for planned in self.setup.plan.controls:
            name = planned.name
            self._tell({"event": "control", "control": name, "steps": self.setup.plan.steps})
            folder = self._part(name)
            start = on_first(folder.latest)
            try:
                model = ModelRun(self.setup, name, folder, stop).run(start)
            except DivergedError as error:
                earlier = self._control_folder(name)
                kept = f"; {earlier.name} is of an earlier run" if earlier is not None and earlier.exists() else ""
                found[name] = _Control(note=error.message + kept)
                continue
            if model is None:
                found[name] = _Control(note=IS_SOURCE, is_source=True)
            elif planned.output is None:
                model.model = None
                found[name] = _Control(model)
            else:
                found[name] = _Control(model, self._take_weights(model, name))
        return found

    def _result(
        self,
        trained: TrainedModel,
        comparison: Comparison | None,
        resumed_from: int | None,
        controls: Mapping[Variant, _Control],
    ) -> FinetuneResult:
        from surgery.training.held_out import mean_loss

        numbers = log_numbers(self.folder)
        return FinetuneResult(
            plan=self.setup.plan,
            output=self.output,
            steps=trained.progress.step,
            tokens=trained.progress.tokens,
            seconds=round(trained.progress.seconds, 1),
            training_loss=numbers["loss"],
            held_out_loss_before=mean_loss(trained.losses.get("converted", [])),
            held_out_loss_after=mean_loss(trained.losses.get("recovered", [])),
            rejected_before=numbers["rejected_before"],
            rejected_after=numbers["rejected_after"],
            comparison=comparison,
            scale=trained.scale,
            resumed_from=resumed_from,
            controls={
                name: folder
                for name, control in controls.items()
                if control.model is not None and (folder := self._control_folder(name)) is not None
            },
        )

    def _write(
        self,
        trained: TrainedModel,
        weights: TrainedWeights,
        result: FinetuneResult,
        controls: Collection[Variant],
        *,
        force: bool,
    ) -> None:
        setup, losses = self.setup, trained.losses
        before, after = losses.get("converted", []), losses.get("recovered", [])
        entry = {
            **training_entry(setup, trained, weights, self.folder, before, after),
            "comparison": None if result.comparison is None else result.comparison.to_dict(),
            # The names of folders beside the output, since a record has no paths.
            "control_checkpoints": {name: path.name for name, path in result.controls.items()},
        }
        record = run_record(setup, entry, self.folder, {name: self._part(name) for name in controls})
        base = setup.source, setup.checkpoint
        weights.write(base, self.output, record, address=setup.recipe.model, force=force)
        self.folder.remove()

    def _write_control(self, name: Variant, control: _Control, losses: Mapping[str, Losses], *, force: bool) -> None:
        """Write a control: what was trained, in the source or in another conversion of the source."""
        assert control.model is not None and control.weights is not None
        setup, part = self.setup, self._part(name)
        before, after = losses.get("source", []), losses.get(name, [])
        entry = {
            **training_entry(setup, control.model, control.weights, part, before, after),
            "control": name,
            "control_of": self.output.name,
        }
        # A run that was stopped while it wrote replaces what it wrote.
        replaces = force or part.is_writing
        folder = self._control_folder(name)
        assert folder is not None, "only then weights are taken"
        check_output(folder, force=replaces)  # before the mark: a folder of somebody else is not this run's
        part.begin_writing()
        origin = find_origin(setup.checkpoint, setup.conversion)
        place = part.path / "base"
        base = origin.base(name, place)
        record = run_record(setup, entry, part, {})
        control.weights.write(base, folder, record, address=origin.address, force=replaces)
        shutil.rmtree(place, ignore_errors=True)

    def _control_folder(self, control: Variant) -> Path | None:
        """The folder for a control's checkpoint, as the plan names it; None if none is written."""
        named = self.setup.plan.control_output(control)
        return None if named is None else Path(named).expanduser().resolve()

    def _part(self, control: Variant) -> TrainingFolder:
        return self.folder.part(f"control-{control}")

    def _identity(self) -> dict[str, str]:
        checkpoint = self.setup.checkpoint
        model = {
            "config": checkpoint.config,
            "files": dict(checkpoint.file_sizes),
            "tensors": {name: [info.dtype, list(info.shape)] for name, info in checkpoint.tensors.items()},
        }
        return {"data": self.setup.data.fingerprint, "model": sha256_json(model)}

    def _tell(self, event: dict[str, Any]) -> None:
        if self.setup.on_progress is not None and is_first():
            self.setup.on_progress(event)
