"""One model taken through all stages of a recipe: the operated one, or a control."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from surgery.checkpoint import Checkpoint, Source
from surgery.recovery.dataset import TrainingData
from surgery.recovery.errors import DivergedError, TrainingStoppedError
from surgery.recovery.operating import converted_source
from surgery.recovery.planning import FinetunePlan, count_steps, effective_precision, needs_second_copy
from surgery.recovery.preparing import (
    Layout,
    Variant,
    choose_trained,
    prepare_model,
    put,
)
from surgery.recovery.processes import is_first, on_first
from surgery.recovery.recipe import Recipe
from surgery.recovery.state import Progress, TrainingFolder, progress_of, stream_of

if TYPE_CHECKING:
    from torch import nn

    from surgery.conversion.plan import PreparedPlan
    from surgery.recovery.comparison import Losses
    from surgery.recovery.objectives import Teacher
    from surgery.recovery.trainer import RecoveryTrainer, StopCallback

OnProgress = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Setup:
    """What all models of a run share."""

    recipe: Recipe
    source: Source
    checkpoint: Checkpoint
    layout: Layout
    data: TrainingData
    plan: FinetunePlan
    pad: int
    device: str
    attn_implementation: str | None
    again: str
    sharded: bool
    on_progress: OnProgress | None
    conversion: PreparedPlan | None = None

    def converted(self, folder: Path) -> Setup:
        """With the converted checkpoint in ``folder`` in place of the planned one, where the recipe converts."""
        if self.conversion is None:
            return self
        conversion = self.conversion
        source, checkpoint = on_first(lambda: converted_source(conversion, folder))
        return replace(self, source=source, checkpoint=checkpoint)

    def stage_recipes(self) -> list[Recipe]:
        """The recipe of each stage, its precision resolved; one precision for the whole run."""
        precision = effective_precision(self.recipe, self.checkpoint)
        return [stage.model_copy(update={"precision": precision}) for stage in self.recipe.stage_recipes()]


@dataclass
class Outcome:
    """A model that went through its stages, and its losses by name: before (source, converted) and after.

    ``learned`` is how many numbers any stage trained, ``kept`` the names of their parameters.
    """

    model: Any
    learned: int
    kept: list[str]
    progress: Progress
    losses: dict[str, Losses] = field(default_factory=dict)
    scale: Mapping[str, Any] = field(default_factory=dict)


class Attempt:
    """One of the models of a run."""

    def __init__(self, setup: Setup, variant: Variant, folder: TrainingFolder, stop: StopCallback) -> None:
        self.setup, self.variant, self.folder, self.stop = setup, variant, folder, stop
        self.stages = setup.stage_recipes()

    def run(self, start: Path | None) -> Outcome | None:
        """Train, from the beginning or from a checkpoint.

        Returns:
            None when the recipe trains nothing of this model.

        Raises:
            DivergedError: loss or gradient stopped being finite, or rose for too long.
            TrainingStoppedError: interrupted, with a checkpoint to go on from.
        """
        numbers = self.prepare()
        if not numbers:
            return None
        progress = progress_of(start) if start is not None else Progress(0, 0, 0.0)
        outcome = Outcome(self.model, self._count(), self.kept, progress)
        if start is None:
            for number in numbers:
                self.trainer(number, progress).trial(self.stages[number].data.sequence_length)
            self._tell({"event": "trial"})
        self._measure_before(outcome, numbers[0], fresh=start is None)
        snapshot = stream_of(start) if start is not None else None
        for number in numbers:
            if number < progress.stage:
                continue
            resumed = start if number == progress.stage else None
            trainer = self.trainer(number, progress if resumed is None else self._before(progress), snapshot)
            self._learn(trainer, resumed)
            progress = trainer.progress
            # The next stage reads on where this one stopped, as its own first row.
            snapshot = trainer.stream_snapshot()
            snapshot = None if snapshot is None else {**snapshot, "row": 0}
            if self.stop.requested and progress.step < self._steps():
                raise TrainingStoppedError(
                    f"Stopped after step {progress.step} of {self._steps()}; a checkpoint was saved.",
                    hint=f"Go on with: {self.setup.again}",
                )
        outcome.progress = progress
        name = "recovered" if self.variant == "operated" else self.variant
        outcome.losses[name] = trainer.held_out_losses()
        self._note(trainer, outcome.losses[name])
        outcome.scale = trainer.scale_by_layer()
        if self.setup.sharded:
            outcome.model = self._unshard(trainer) if self.variant == "operated" else None
        return outcome

    # --------------------------------------------------------------------------------------------------- parts

    def prepare(self) -> list[int]:
        """Load the model and make it ready; the numbers of the stages that train anything of it."""
        from transformers import set_seed

        set_seed(self.setup.recipe.seed)
        self.model = self._build()
        trained = [choose_trained(self.model, stage, self.setup.layout, self.variant) for stage in self.stages]
        self.kept = sorted({name for names in trained for name in names})
        if self.setup.sharded and self.kept:
            self._shard()
        self.teacher = self._teacher() if self.kept else None
        return [number for number, names in enumerate(trained) if names]

    def _build(self) -> nn.Module:
        from surgery.recovery.packed import check_loaded, stay_trainable, unpack_now
        from surgery.recovery.variants import become

        model = self._load()
        check_loaded(model)
        stay_trainable(model)
        unpack_now(model)
        become(model, self.variant, self.setup.layout)
        return prepare_model(model, self.setup.recipe, self.setup.layout, self.variant, self.stages)

    def _shard(self) -> None:
        from surgery.loading import pick_device
        from surgery.recovery.sharding import shard

        device, match = pick_device(self.setup.device).type, any(own.objective.name == "match" for own in self.stages)
        held = shard(self.model, self.setup.layout, device, trained=self.kept, match=match)
        total = sum(parameter.numel() for parameter in self.model.parameters())
        self._tell({"event": "sharding", "parameters": total, "held": held})

    def _unshard(self, trainer: RecoveryTrainer) -> Any:
        """The trained model on the CPU, in the first process alone: what is frozen is read again."""
        trained = trainer.trained_tensors()
        if not is_first():
            return None
        model = self._build()
        put(model, trained)
        return model

    def _load(self) -> Any:
        from surgery.loading import RunOptions, load_model

        dtype: Literal["bfloat16", "float32"] = "bfloat16" if self.stages[0].precision == "bfloat16" else "float32"
        # No device need hold all of a model that is to be sharded.
        device = "cpu" if self.setup.sharded else self.setup.device
        options = RunOptions(device=device, dtype=dtype, attn_implementation=self.setup.attn_implementation)
        return load_model(self.setup.source.folder, options)

    def _teacher(self) -> Teacher | None:
        """A second copy of the original, where the weights themselves are trained."""
        if not needs_second_copy(self.stages):
            return None
        from surgery.loading import switch_off
        from surgery.recovery.objectives import Teacher

        model = self._load().requires_grad_(False)
        switch_off(model)
        if self.setup.sharded:
            from surgery.loading import pick_device
            from surgery.recovery.sharding import shard

            shard(model, self.setup.layout, pick_device(self.setup.device).type)
        self._tell({"event": "teacher", "second_copy": True, "parameters": self.setup.plan.parameters_total})
        said = self.setup.plan.teacher
        row = {"step": 0, "tokens": 0, "teacher": said, "parameters": self.setup.plan.parameters_total}

        def note() -> None:
            if not any("teacher" in row for row in self.folder.rows()):
                self.folder.append(row)

        on_first(note)  # which looks, too: another process may look before or after it has written
        return Teacher(model)

    def trainer(self, number: int, before: Progress, snapshot: dict[str, Any] | None = None) -> RecoveryTrainer:
        """Of one stage; what it trains is switched on."""
        from surgery.recovery.trainer import RecoveryTrainer, StepCallback, training_arguments

        stage, setup = self.stages[number], self.setup
        choose_trained(self.model, stage, setup.layout, self.variant)
        length = stage.data.sequence_length
        rows = setup.data.rows(length)
        stream = None
        if setup.data.stream is not None:
            stream = setup.data.stream(length, setup.recipe.seed + number, snapshot)
        arguments = training_arguments(stage, self.folder.stage_path(number), 1, setup.device, number)
        arguments.max_steps, _ = count_steps(stage, rows, setup.data.weights, arguments.world_size)
        steps = StepCallback()
        trainer = RecoveryTrainer(
            self.model,
            arguments,
            recipe=stage,
            layout=setup.layout,
            folder=self.folder,
            train=rows,
            weights=setup.data.weights,
            stream=stream,
            held_out=setup.data.held_out,
            pad=setup.pad,
            stage=number,
            before=before,
            kept=self.kept,
            total=setup.plan.steps if arguments.world_size == 1 else None,
            teacher=self.teacher,
            on_progress=self._tell,
            callbacks=[self.stop, steps],
        )
        steps.trainer = trainer
        return trainer

    def _learn(self, trainer: RecoveryTrainer, resumed: Path | None) -> None:
        done = progress_of(resumed).stage_step if resumed is not None else 0
        trainer.start_clock()
        if done < trainer.args.max_steps:
            trainer.train(resume_from_checkpoint=str(resumed) if resumed is not None else None)
        elif resumed is not None:
            # All steps of the stage were taken.
            trainer.restore(resumed)
            trainer.state.global_step = done

    def _before(self, progress: Progress) -> Progress:
        """What earlier stages did, seen from within a stage; the rest comes from the checkpoint."""
        return Progress(progress.step - progress.stage_step, progress.tokens, progress.seconds)

    def _measure_before(self, outcome: Outcome, number: int, *, fresh: bool) -> None:
        """The source and the converted model, which a resumed run remembers."""
        if self.variant != "operated" or not self.setup.data.held_out:
            return
        from surgery.recovery.objectives import original

        if not fresh:
            outcome.losses.update(self.folder.losses())
            return
        trainer = self.trainer(number, outcome.progress)
        with original(self.model):
            outcome.losses["source"] = trainer.held_out_losses()
        outcome.losses["converted"] = trainer.held_out_losses()
        self._note(trainer, outcome.losses["converted"])
        if trainer.is_world_process_zero():
            self.folder.keep_losses(outcome.losses)

    def _note(self, trainer: RecoveryTrainer, losses: Losses) -> None:
        """The held-out loss as a row of the log, once."""
        from surgery.recovery.measuring import mean_loss

        loss, step = mean_loss(losses), trainer.step
        if loss is None:
            return
        if not math.isfinite(loss):
            raise DivergedError(
                f"The held-out loss after step {step} is {loss}.",
                hint="The model gives no finite loss on this text: check it with `surgery verify`.",
            )
        if any(row["step"] == step and "held_out_loss" in row for row in self.folder.rows()):
            return
        seconds = round(trainer.seconds, 3) if step else 0.0
        row = {"step": step, "tokens": trainer.tokens_seen, "held_out_loss": loss, "seconds": seconds}
        rejected = trainer.held_out_rejected()
        if rejected is not None:
            row["held_out_rejected"] = rejected
        if trainer.is_world_process_zero():
            self.folder.append(row)
        self._tell({"event": "evaluation", "steps": self._steps(), **row})

    def _steps(self) -> int:
        return self.setup.plan.steps

    def _count(self) -> int:
        """How many numbers any stage trains."""
        kept = set(self.kept)
        return sum(parameter.numel() for name, parameter in self.model.named_parameters() if name in kept)

    def _tell(self, event: dict[str, Any]) -> None:
        if self.setup.on_progress is not None and is_first():
            self.setup.on_progress(event if self.variant == "operated" else {**event, "control": self.variant})


def merged(model: nn.Module) -> Any:
    """The model without its adapter, changes added to the weights."""
    unmerged: Any = model
    return unmerged.merge_and_unload(safe_merge=True) if hasattr(model, "merge_and_unload") else model
