"""A whole run: the model that is trained, its controls, the comparison of all of them, and the result on disk."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from surgery.checkpoint import sha256_json
from surgery.recovery.adapter import Adapter
from surgery.recovery.attempt import Attempt, Outcome, Setup, merged
from surgery.recovery.comparison import Comparison, compare
from surgery.recovery.errors import DivergedError
from surgery.recovery.planning import FinetunePlan, needs_second_copy
from surgery.recovery.preparing import is_operation, linear_names, lora_targets, trained_names
from surgery.recovery.processes import is_first, on_first
from surgery.recovery.reading import dump_recipe
from surgery.recovery.recipe import TrainLora
from surgery.recovery.state import TrainingFolder, progress_of
from surgery.recovery.writing import Record, changed_tensors, plan_space, write_adapter, write_result

if TYPE_CHECKING:
    from surgery.recovery.trainer import StopCallback


@dataclass(frozen=True)
class FinetuneResult:
    """What a run did. A dry run has a ``plan`` and neither steps nor losses nor an output."""

    plan: FinetunePlan
    output: Path | None = None
    steps: int = 0
    tokens: int = 0
    seconds: float = 0.0
    training_loss: float | None = None
    held_out_loss_before: float | None = None
    held_out_loss_after: float | None = None
    rejected_before: float | None = None
    rejected_after: float | None = None
    comparison: Comparison | None = None
    scale: Mapping[str, Mapping[str, Sequence[float]]] | None = None
    resumed_from: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            **asdict(self),
            "plan": self.plan.to_dict(),
            "output": None if self.output is None else str(self.output),
        }


class Session:
    """The parts of one run, in order."""

    def __init__(self, setup: Setup, output: Path) -> None:
        self.setup, self.output = setup, output
        self.folder = TrainingFolder(output)

    def run(self, *, resume: bool, force: bool) -> FinetuneResult:
        """Train, compare, write."""
        from surgery.recovery.trainer import StopCallback, training_arguments

        setup = self.setup
        plan_space(setup.checkpoint, self.output)
        # Checked before the folder is made, so that a wrong device or tracker leaves nothing behind.
        for stage in setup.stage_recipes():
            training_arguments(stage, self.folder.path, 1, setup.device)
        start = on_first(lambda: self.folder.begin(setup.recipe, self._identity(), resume=resume, force=force))
        self.setup = setup = setup.converted(self.folder.path / "converted")
        # Now, since the checkpoint may be rotated away.
        resumed_from = progress_of(start).step if start is not None else None
        stop = StopCallback()
        with _signals(stop):
            outcome = Attempt(setup, "operated", self.folder, stop).run(start)
            assert outcome is not None
            made = _Made(outcome, setup) if is_first() else None
            outcome.model = None
            controls, notes = self._controls(stop)
        losses = dict(outcome.losses)
        learned = {"source": 0, "converted": 0, "recovered": outcome.learned}
        for name, control in controls.items():
            learned[name] = control.learned if control is not None else 0
            if control is not None:
                losses.update(control.losses)
        if "untouched" in controls and controls["untouched"] is None and "source" in losses:
            losses["untouched"] = losses["source"]
        comparison = compare(losses, learned if losses else {}, notes)
        result = self._result(outcome, comparison, resumed_from)

        def write() -> None:
            assert made is not None  # what is written is with the first process
            self._write(made, result, list(controls), force=force)

        self._tell({"event": "writing"})
        on_first(write)
        self._tell({"event": "done", **result.to_dict()})
        return result

    def _controls(self, stop: StopCallback) -> tuple[dict[str, Outcome | None], dict[str, str]]:
        """Each control in turn; one that diverges is a result and not the end of the run."""
        found: dict[str, Outcome | None] = {}
        notes: dict[str, str] = {}
        for name in self.setup.recipe.controls:
            self._tell({"event": "control", "control": name, "steps": self.setup.plan.steps})
            folder = self.folder.part(f"control-{name}")
            start = on_first(folder.latest)
            try:
                found[name] = Attempt(self.setup, name, folder, stop).run(start)
            except DivergedError as error:
                found[name], notes[name] = None, error.message
                continue
            outcome = found[name]
            if outcome is None:
                notes[name] = "the recipe trains the operation alone, so there is nothing to train: it is the source"
            else:
                outcome.model = None
        return found, notes

    def _result(self, outcome: Outcome, comparison: Comparison | None, resumed_from: int | None) -> FinetuneResult:
        from surgery.recovery.measuring import mean_loss

        rows = self.folder.rows()
        losses = [row["loss"] for row in rows if "loss" in row]
        rejected = [row["held_out_rejected"] for row in rows if "held_out_rejected" in row]
        return FinetuneResult(
            plan=self.setup.plan,
            output=self.output,
            steps=outcome.progress.step,
            tokens=outcome.progress.tokens,
            seconds=round(outcome.progress.seconds, 1),
            training_loss=losses[-1] if losses else None,
            held_out_loss_before=mean_loss(outcome.losses.get("converted", [])),
            held_out_loss_after=mean_loss(outcome.losses.get("recovered", [])),
            rejected_before=rejected[0] if rejected else None,
            rejected_after=rejected[-1] if rejected else None,
            comparison=comparison,
            scale=outcome.scale,
            resumed_from=resumed_from,
        )

    def _write(self, made: _Made, result: FinetuneResult, controls: Sequence[str], *, force: bool) -> None:
        import surgery
        from surgery.reporting.training import training_curves

        setup, recipe, rows = self.setup, self.setup.recipe, self.folder.rows()
        stages = setup.stage_recipes()
        what = dict.fromkeys(stage.train.what for stage in stages)
        entry = {
            "step": "finetune",
            "version": surgery.__version__,
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
            "merged": made.merge,
            "weights_changed": any(not is_operation(name) for name in made.names),
        }
        parts = {name: self.folder.part(f"control-{name}") for name in controls}
        record = Record(
            entry=entry,
            recipe=dump_recipe(recipe),
            log=self.folder.log_path.read_text(encoding="utf-8"),
            draw=lambda path: training_curves(rows, path, {name: part.rows() for name, part in parts.items()}),
            adapter=made.adapter.write if made.adapter and made.merge else None,
            logs={
                f"log-{name}": part.log_path.read_text(encoding="utf-8") for name, part in parts.items() if part.rows()
            },
        )
        if made.merge:
            write_result(setup.checkpoint, self.output, made.changed, record, force=force)
        else:
            own = made.adapter
            assert own is not None

            def write(folder: Path) -> None:
                own.write(folder, recipe.model)

            write_adapter(setup.checkpoint, self.output, write, record, force=force)
        self.folder.remove()

    def _who_teaches(self) -> str | None:
        stages = self.setup.stage_recipes()
        if all(stage.objective.name == "next_token" for stage in stages):
            return None
        return "a second copy" if needs_second_copy(stages) else "the same weights, operation and adapter off"

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


class _Made:
    """What a trained model leaves to be written, before it is let go and the controls are loaded."""

    def __init__(self, outcome: Outcome, setup: Setup) -> None:
        stages, layout = setup.stage_recipes(), setup.layout
        lora = next((stage for stage in stages if isinstance(stage.train, TrainLora)), None)
        self.adapter = None
        self.merge = True
        if lora is not None:
            assert isinstance(lora.train, TrainLora)
            self.adapter = Adapter(outcome.model, setup.source, setup.checkpoint, outcome.kept)
            self.merge = lora.train.merge
        self.names: list[str] = []
        self.changed: dict[str, Any] = {}
        if not self.merge:
            return  # the adapter holds all that was trained
        model = merged(outcome.model)
        own = [name for name, _ in model.named_parameters()]
        names = {name for stage in stages for name in trained_names(stage, layout, own)}
        if lora is not None:
            assert isinstance(lora.train, TrainLora)
            targets = lora_targets(lora.train, layout, linear_names(model), layout.chosen(lora))
            names |= {f"{target}.weight" for target in targets}
        self.names = [name for name in own if name in names]
        self.changed = {name: tensor.to("cpu") for name, tensor in changed_tensors(model, self.names).items()}


@contextmanager
def _signals(stop: StopCallback) -> Iterator[None]:
    """The first Ctrl-C or SIGTERM asks to stop after the step; a second one stops at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    kinds = (signal.SIGINT, signal.SIGTERM)
    before = {kind: signal.getsignal(kind) for kind in kinds}

    def ask(number: int, frame: Any) -> None:
        if stop.requested or not stop.active:  # outside the steps there is nothing to finish
            raise KeyboardInterrupt
        stop.requested = True

    for kind in kinds:
        signal.signal(kind, ask)
    try:
        yield
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)
