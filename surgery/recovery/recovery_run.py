"""A whole run: the model that is trained, its controls, the comparison of all of them, and the result on disk."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from surgery.checkpoint import sha256_json
from surgery.operations.parameters import is_operation
from surgery.recovery.comparison import Comparison, compare
from surgery.recovery.model_run import ModelRun, RunSetup, TrainedModel
from surgery.recovery.recipe_file import dump_recipe
from surgery.recovery.result import FinetuneResult
from surgery.recovery.result_folder import Record, plan_space, write_adapter, write_result
from surgery.recovery.teacher_choice import teacher_in_words
from surgery.recovery.trained_weights import TrainedWeights
from surgery.training.errors import DivergedError
from surgery.training.folder import TrainingFolder
from surgery.training.interruption import stop_on_signals
from surgery.training.processes import is_first, on_first
from surgery.training.progress import progress_of
from surgery.version import __version__

if TYPE_CHECKING:
    from surgery.training.callbacks import StopCallback


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
        plan_space(setup.checkpoint, self.output)
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
            weights = TrainedWeights(trained, setup) if is_first() else None
            trained.model = None
            controls, notes = self._controls(stop)
        losses = dict(trained.losses)
        learned = {"source": 0, "converted": 0, "recovered": trained.trained_count}
        for name, control in controls.items():
            learned[name] = control.trained_count if control is not None else 0
            if control is not None:
                losses.update(control.losses)
        if "untouched" in controls and controls["untouched"] is None and "source" in losses:
            losses["untouched"] = losses["source"]
        compared = losses and setup.recipe.needs_operations
        comparison = compare(losses, learned, notes) if compared else None
        result = self._result(trained, comparison, resumed_from)

        def write() -> None:
            assert weights is not None  # the first process has them
            self._write(weights, result, list(controls), force=force)

        self._tell({"event": "writing"})
        on_first(write)
        self._tell({"event": "done", **result.to_dict()})
        return result

    def _controls(self, stop: StopCallback) -> tuple[dict[str, TrainedModel | None], dict[str, str]]:
        """Train each control; a control that diverges is a result and does not end the run."""
        found: dict[str, TrainedModel | None] = {}
        notes: dict[str, str] = {}
        for name in self.setup.recipe.controls:
            self._tell({"event": "control", "control": name, "steps": self.setup.plan.steps})
            folder = self.folder.part(f"control-{name}")
            start = on_first(folder.latest)
            try:
                found[name] = ModelRun(self.setup, name, folder, stop).run(start)
            except DivergedError as error:
                found[name], notes[name] = None, error.message
                continue
            control = found[name]
            if control is None:
                notes[name] = "the recipe trains only the operation, so this control is the source model"
            else:
                control.model = None
        return found, notes

    def _result(self, trained: TrainedModel, comparison: Comparison | None, resumed_from: int | None) -> FinetuneResult:
        from surgery.training.held_out import mean_loss

        rows = self.folder.rows()
        losses = [row["loss"] for row in rows if "loss" in row]
        rejected = [row["held_out_rejected"] for row in rows if "held_out_rejected" in row]
        return FinetuneResult(
            plan=self.setup.plan,
            output=self.output,
            steps=trained.progress.step,
            tokens=trained.progress.tokens,
            seconds=round(trained.progress.seconds, 1),
            training_loss=losses[-1] if losses else None,
            held_out_loss_before=mean_loss(trained.losses.get("converted", [])),
            held_out_loss_after=mean_loss(trained.losses.get("recovered", [])),
            rejected_before=rejected[0] if rejected else None,
            rejected_after=rejected[-1] if rejected else None,
            comparison=comparison,
            scale=trained.scale,
            resumed_from=resumed_from,
        )

    def _write(self, weights: TrainedWeights, result: FinetuneResult, controls: Sequence[str], *, force: bool) -> None:
        from surgery.reporting.training_log import draw_training_log

        setup, recipe, rows = self.setup, self.setup.recipe, self.folder.rows()
        stages = setup.stage_recipes()
        what = dict.fromkeys(stage.train.what for stage in stages)
        entry = {
            "step": "finetune",
            "version": __version__,
            "recipe_sha256": sha256_json(recipe.model_dump(mode="json")),
            "label": f"finetune {', '.join(what)}",
            "trained": " then ".join(what),
            "objective": " then ".join(dict.fromkeys(stage.objective.name for stage in stages)),
            "teacher": self._who_teaches(),
            "steps": result.steps,
            "tokens": result.tokens,
            "seconds": result.seconds,
            "loss": result.training_loss,
            "held_out_loss_before": result.held_out_loss_before,
            "held_out_loss_after": result.held_out_loss_after,
            "rejected_before": result.rejected_before,
            "rejected_after": result.rejected_after,
            "held_out_tokens": setup.plan.held_out_tokens,
            "comparison": None if result.comparison is None else result.comparison.to_dict(),
            "data_sha256": setup.data.fingerprint,
            "merged": weights.merge,
            "weights_changed": any(not is_operation(name) for name in weights.names),
        }
        parts = {name: self.folder.part(f"control-{name}") for name in controls}
        record = Record(
            entry=entry,
            recipe=dump_recipe(recipe),
            log=self.folder.log_path.read_text(encoding="utf-8"),
            draw=lambda path: draw_training_log(rows, path, {name: part.rows() for name, part in parts.items()}),
            adapter=weights.adapter.write if weights.adapter and weights.merge else None,
            logs={
                f"log-{name}": part.log_path.read_text(encoding="utf-8") for name, part in parts.items() if part.rows()
            },
        )
        if weights.merge:
            write_result(setup.checkpoint, self.output, weights.changed, record, force=force)
        else:
            own = weights.adapter
            assert own is not None

            def write(folder: Path) -> None:
                own.write(folder, recipe.model)

            write_adapter(setup.checkpoint, self.output, write, record, force=force)
        self.folder.remove()

    def _who_teaches(self) -> str | None:
        return teacher_in_words(self.setup.stage_recipes(), self.setup.layout)

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
