"""The training of one model of a run, through all stages: the operated model, or a control."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from surgery.checkpoint import Checkpoint, Source
from surgery.recovery.converted import converted_source
from surgery.recovery.layout import Layout, Variant
from surgery.recovery.parameters import choose_trained, optimizer_groups
from surgery.recovery.plan import FinetunePlan
from surgery.recovery.recipe import Recipe
from surgery.recovery.teacher_choice import kept_operations, needs_second_copy
from surgery.training.dataset import TrainingData
from surgery.training.folder import TrainingFolder
from surgery.training.processes import is_first, on_first
from surgery.training.progress import Progress
from surgery.training.run import RunSettings, TrainingRun

if TYPE_CHECKING:
    from torch import nn

    from surgery.conversion.plan import PreparedPlan
    from surgery.training.callbacks import StopCallback
    from surgery.training.held_out import Losses
    from surgery.training.step_log import OnProgress
    from surgery.training.teacher import Teacher
    from surgery.training.trainer import StageTrainer


@dataclass(frozen=True)
class RunSetup:
    """The values that all models of a run share."""

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

    def converted(self, folder: Path) -> RunSetup:
        """A copy with the converted checkpoint in ``folder``, if the recipe has operations."""
        if self.conversion is None:
            return self
        conversion = self.conversion
        source, checkpoint = on_first(lambda: converted_source(conversion, folder))
        return replace(self, source=source, checkpoint=checkpoint)

    def stage_recipes(self) -> list[Recipe]:
        """The recipe of each stage, with the precision of the run resolved."""
        return [stage.model_copy(update={"precision": self.plan.precision}) for stage in self.recipe.stage_recipes()]


@dataclass
class TrainedModel:
    """A model after its stages.

    Attributes:
        model: the model; None after it was freed, or in another process.
        trained_count: number of trained parameters, over all stages.
        trained: names of the trained tensors.
        progress: finished steps, tokens and time.
        losses: held-out losses by name: before (source, converted) and after the training.
        scale: mean, least and greatest value of each learned parameter, by layer.
    """

    model: Any
    trained_count: int
    trained: list[str]
    progress: Progress
    losses: dict[str, Losses] = field(default_factory=dict)
    scale: Mapping[str, Any] = field(default_factory=dict)


class ModelRun:
    """One of the models of a run."""

    def __init__(self, setup: RunSetup, variant: Variant, folder: TrainingFolder, stop: StopCallback) -> None:
        self.setup, self.variant, self.folder, self.stop = setup, variant, folder, stop
        self.stages = setup.stage_recipes()

    def run(self, start: Path | None) -> TrainedModel | None:
        """Train, from the start or from a checkpoint.

        Returns:
            The trained model; None if the recipe trains no parameter of it.

        Raises:
            DivergedError: the loss or gradient is no longer finite, or the loss rose for too long.
            TrainingStoppedError: interrupted, with a checkpoint to resume from.
        """
        from surgery.recovery.stage_hooks import scale_by_layer

        numbers = self.prepare()
        if not numbers:
            return None
        if start is None:
            self.training.try_out(numbers)
        losses = self._losses_before(numbers[0], fresh=start is None)
        trainer = self.training.train(numbers, start)
        after = trainer.held_out_losses()
        losses["recovered" if self.variant == "operated" else self.variant] = after
        self.training.note_held_out(trainer, after)
        model: Any = self.model
        scale = scale_by_layer(model, self.setup.layout)
        if self.setup.sharded:
            written = self.variant == "operated" or self.setup.plan.control_output(self.variant) is not None
            model = self._unshard(trainer) if written else None
        return TrainedModel(model, self._count(), self.trained, trainer.progress, losses, scale)

    def prepare(self) -> list[int]:
        """Load and prepare the model; returns the numbers of the stages that train parameters of it."""
        from transformers import set_seed

        set_seed(self.setup.recipe.seed)
        self.model = self._build()
        trained = [choose_trained(self.model, stage, self.setup.layout, self.variant) for stage in self.stages]
        self.trained = sorted({name for names in trained for name in names})
        if self.setup.sharded and self.trained:
            self._shard()
        teacher = self._teacher() if self.trained else None
        self.training = self._training(teacher)
        return [number for number, names in enumerate(trained) if names]

    def _training(self, teacher: Teacher | None) -> TrainingRun:
        from surgery.recovery.quantized import QuantizedTrainingRun

        setup = self.setup
        settings = RunSettings(
            stages=[stage.training_options() for stage in self.stages],
            data=setup.data,
            device=setup.device,
            again=setup.again,
            pad=setup.pad,
            on_progress=self._tell,
            prepare=self._prepare_stage,
            groups=optimizer_groups,
        )
        return QuantizedTrainingRun(self.model, settings, self.folder, self.stop, self.trained, teacher)

    def _prepare_stage(self, number: int) -> Sequence[Any]:
        """Select the parameters of a stage, and give its hooks."""
        from surgery.recovery.stage_hooks import stage_hooks

        choose_trained(self.model, self.stages[number], self.setup.layout, self.variant)
        return stage_hooks(self.model, self.setup.layout, self.stages[number])

    def _build(self) -> nn.Module:
        from surgery.recovery.controls import apply_control
        from surgery.recovery.lora import prepare_model
        from surgery.recovery.quantized import check_loaded, stay_trainable, unpack_now

        model = self._load()
        check_loaded(model)
        stay_trainable(model)
        unpack_now(model)
        apply_control(model, self.variant, self.setup.layout)
        return prepare_model(model, self.setup.recipe, self.setup.layout, self.variant, self.stages)

    def _load(self) -> Any:
        from surgery.loading import RunOptions, load_model

        dtype: Literal["bfloat16", "float32"] = "bfloat16" if self.stages[0].precision == "bfloat16" else "float32"
        # A model that will be sharded may be too large for one device.
        device = "cpu" if self.setup.sharded else self.setup.device
        options = RunOptions(device=device, dtype=dtype, attn_implementation=self.setup.attn_implementation)
        return load_model(self.setup.source.folder, options)

    def _shard(self) -> None:
        held = self._share(self.model, trained=self.trained)
        total = sum(parameter.numel() for parameter in self.model.parameters())
        self._tell({"event": "sharding", "parameters": total, "held": held})

    def _share(self, model: nn.Module, trained: Sequence[str] = ()) -> int:
        """Shard a model by its layers; returns the number of parameters in this process.

        Modules of operations are not sharded: they are small, float32, and can be read outside of a forward pass.
        Attention modules are units of their own if an objective calls them directly.
        """
        from surgery.loading import operation_modules, pick_device
        from surgery.recovery.teachers import attention_modules
        from surgery.training.sharding import shard

        called = trained and any(own.objective.calls_modules for own in self.stages)
        units = list(attention_modules(model).values()) if called else []
        units += [module for name, module in model.named_modules() if self.setup.layout.is_layer(name)]
        kept = operation_modules(model).values()
        return shard(model, units, pick_device(self.setup.device).type, whole=kept, trained=trained)

    def _unshard(self, trainer: StageTrainer) -> Any:
        """The trained model on the CPU, in the first process only; frozen weights are read from disk again."""
        from surgery.training.sharding import copy_into

        trained = trainer.trained_tensors()
        if not is_first():
            return None
        model = self._build()
        copy_into(model, trained)
        return model

    def _teacher(self) -> Teacher | None:
        """The teacher: the same weights, or a second copy of the source model if the weights are trained."""
        if not any(stage.objective.needs_teacher for stage in self.stages):
            return None
        from surgery.recovery.teachers import SameWeights, SecondCopy

        kept = kept_operations(self.stages, self.setup.layout)
        if not needs_second_copy(self.stages):
            return SameWeights(kept)
        from surgery.loading import switch_off

        model = self._load().requires_grad_(False)
        switch_off(model, keep=kept)
        if self.setup.sharded:
            self._share(model)
        plan = self.setup.plan
        self._tell({"event": "teacher", "second_copy": True, "parameters": plan.parameters_total})
        row = {"step": 0, "tokens": 0, "teacher": plan.teacher, "parameters": plan.parameters_total}

        def note() -> None:
            if not any("teacher" in row for row in self.folder.rows()):
                self.folder.append(row)

        on_first(note)  # the check is inside, because another process may check before or after the row is written
        return SecondCopy(model)

    def _losses_before(self, number: int, *, fresh: bool) -> dict[str, Losses]:
        """Held-out losses of the source and the converted model; a resumed run reads them from its folder."""
        if self.variant != "operated" or not self.setup.data.held_out:
            return {}
        from surgery.recovery.teachers import original

        if not fresh:
            return self.folder.losses()
        trainer = self.training.trainer(number, Progress(0, 0, 0.0))
        losses: dict[str, Losses] = {}
        if self.setup.recipe.needs_operations:  # a model that has learned nothing has no source to compare with
            with original(self.model):
                losses["source"] = trainer.held_out_losses()
        losses["converted"] = trainer.held_out_losses()
        self.training.note_held_out(trainer, losses["converted"])
        if trainer.is_world_process_zero():
            self.folder.keep_losses(losses)
        return losses

    def _count(self) -> int:
        """The number of trained parameters, over all stages."""
        trained = set(self.trained)
        return sum(parameter.numel() for name, parameter in self.model.named_parameters() if name in trained)

    def _tell(self, event: dict[str, Any]) -> None:
        if self.setup.on_progress is not None and is_first():
            self.setup.on_progress(event if self.variant == "operated" else {**event, "control": self.variant})
