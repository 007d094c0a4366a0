"""The schema of a recovery recipe, for YAML, ``--set`` and Python.

Options that depend on another option (the rank depends on training LoRA) form a union with one key that selects the
member, so a key without effect is refused. The sections of operations (`operation_sections`) stand between the head
and the tail; base classes are in the reverse order of the keys.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self, TypeAlias

from pydantic import Field, NonNegativeInt, PositiveFloat, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from surgery.operations import AnyOperation
from surgery.recovery.operation_sections import RecipeSections, StageSections
from surgery.recovery.train_choice import TrainFull, TrainLora, TrainOperation, TrainPretraining
from surgery.schemas.section import Section
from surgery.training.objectives import AnyObjective, NextToken
from surgery.training.options import (
    AdamW,
    Batch,
    Budget,
    Checkpoints,
    Evaluation,
    GradientCheckpointing,
    Guard,
    TrainingOptions,
)
from surgery.training.text_options import Data

ControlName = Literal["untouched", "temperature"]
Precision: TypeAlias = Literal["auto", "float32", "bfloat16", "bfloat16-mixed"]
AnyTrain = Annotated[TrainOperation | TrainLora | TrainFull | TrainPretraining, Field(discriminator="what")]


class _ScaleRate(Section):
    scale_lr: PositiveFloat = Field(default=0.005, description="Learning rate of the operation's parameters.")


class Optimizer(AdamW, _ScaleRate):
    """AdamW. The operation's parameters have their own learning rate and never decay."""


class StageData(Section):
    """The options of the data that a stage can change."""

    sequence_length: Annotated[int, Field(ge=2)] = Field(description="Tokens per sequence in this stage.")


class _StageHead(Section):
    name: str | None = Field(default=None, min_length=1, description="Name in the plan.")
    budget: Budget | None = Field(default=None, description="Length of this stage.")
    data: StageData | None = Field(default=None, description="sequence_length of this stage.")
    train: AnyTrain | None = Field(default=None, description="Parameters that this stage trains.")
    objective: AnyObjective | None = Field(default=None, description="Loss that this stage minimises.")


class _StageTail(Section):
    optimizer: Optimizer | None = Field(
        default=None, description="Learning rates and schedule of this stage; the schedule spans the stage."
    )
    batch: Batch | None = Field(default=None, description="Sequences per step in this stage.")


class Stage(_StageTail, StageSections, _StageHead):
    """One part of a run. An absent key is as in the recipe; ``budget`` and ``objective`` are replaced as a whole."""


class _RecipeHead(Section):
    model: str = Field(
        min_length=1,
        description="Folder or hub id of a converted checkpoint, or of a source model if operations are given.",
    )
    operations: list[AnyOperation] = Field(
        default=[],
        description="Operations to perform first, in order, as `surgery convert` does. The run trains the result.",
    )
    output: str = Field(min_length=1, description="Folder for the trained checkpoint.")
    data: Data
    train: AnyTrain = TrainOperation()
    objective: AnyObjective = NextToken()


class _RecipeTail(Section):
    optimizer: Optimizer = Optimizer()
    budget: Budget | None = Field(
        default=None, description="Length of the training; needed unless every stage has one."
    )
    batch: Batch = Batch()
    stages: list[Stage] = Field(
        default=[], description="Parts of the run, in order; each lists its differences from the recipe."
    )
    precision: Precision = Field(
        default="auto",
        description="auto: the checkpoint's dtype, or bfloat16-mixed where full trains a bfloat16 checkpoint; float32 "
        "on a processor that is slow in bfloat16. "
        "bfloat16-mixed: float32 weights, bfloat16 arithmetic. Parameters of the operation are always float32.",
    )
    gradient_checkpointing: GradientCheckpointing = False
    seed: NonNegativeInt = Field(
        default=0, description="Seed of the held-out split, the order of the data, the start of LoRA, and dropout."
    )
    evaluation: Evaluation = Evaluation()
    checkpoints: Checkpoints = Checkpoints()
    guard: Guard = Guard()
    control: bool | ControlName | Annotated[list[ControlName], Field(min_length=1)] = Field(
        default=False,
        description="Train other models on the same tokens with the same seed, and compare. untouched (or true): the "
        "model without the operation, with the same adapter or weights. temperature: one learned constant per head "
        "instead of the operation's parameter, without ln n. Each control takes as long as the run itself; its "
        "checkpoint is written beside the output, in the folder OUTPUT-NAME.",
    )
    report_to: list[str] = Field(default=[], description="Trackers as transformers names them: tensorboard, wandb, ...")


class Recipe(_RecipeTail, RecipeSections, _RecipeHead):
    """A recovery run."""

    @model_validator(mode="after")
    def _nothing_without_effect(self) -> Self:
        if not self.stages and self.budget is None:
            raise PydanticCustomError("missing_key", "missing", {"key": "budget"})
        idle = [key for section, key in self.idle_keys() if key in getattr(self, section).model_fields_set]
        if "lr" in idle or "weight_decay" in idle:
            raise ValueError(
                f"optimizer.{idle[0]} has no effect when train.what is scale; set optimizer.scale_lr, "
                "or train.what to scale+lora or full"
            )
        if idle:
            raise ValueError(f"evaluation.{idle[0]} has no effect when data.held_out is 0")
        if self.controls and self.data.held_out == 0:
            raise ValueError("control has no effect when data.held_out is 0, because nothing can be compared")
        if not self.needs_operations and (self.controls or self.objective.needs_teacher):
            key = "control" if self.controls else f"objective {self.objective.name}"
            raise ValueError(f"{key} needs a model that has learned something: train.what is pretraining")
        if self.optimizer.warmup >= 1 and self.optimizer.warmup != int(self.optimizer.warmup):
            raise ValueError(f"optimizer.warmup {self.optimizer.warmup:g} must be below 1 or a number of steps")
        if self.operations and isinstance(self.train, TrainLora) and not self.train.merge:
            raise ValueError(
                "train.merge: false gives an adapter that needs its base; operations create a base for this run only; "
                "convert the model first, and set model to the result"
            )
        self._check_stages()
        return self

    def _check_stages(self) -> None:
        """Validate each stage as a recipe."""
        if not self.stages:
            return
        stages, faults = [], []
        for number in range(len(self.stages)):
            try:
                stages.append(self.stage_recipe(number))
            except ValidationError as error:
                for fault in error.errors(include_url=False):
                    where = ".".join(map(str, ("stages", number, *fault["loc"])))
                    key = fault.get("ctx", {}).get("key")
                    message = fault["msg"].removeprefix("Value error, ")
                    faults.append(f"{where}{f'.{key}' if key else ''}: {message}")
        if faults:
            raise ValueError("; ".join(faults))
        what = {stage.train.what for stage in stages}
        if "pretraining" in what and len(what) > 1:
            raise ValueError("stages cannot mix pretraining with another train.what")
        if "full" in what and (adapted := sorted(what & {"lora", "scale+lora"})):
            raise ValueError(f"stages cannot train {adapted[0]} and full in one run: an adapter needs fixed weights")
        shapes = [stage.train.model_dump(exclude={"layers"}) for stage in stages if isinstance(stage.train, TrainLora)]
        layers = [stage.train.layers for stage in stages if isinstance(stage.train, TrainLora)]
        if any(shape != shapes[0] for shape in shapes) or any(chosen != layers[0] for chosen in layers):
            raise ValueError("stages that train an adapter share it: set what, rank, targets and the like in train")

    def stage_recipes(self) -> tuple[Recipe, ...]:
        """A complete recipe for each stage; the recipe itself if it has no stages.

        Raises:
            ValidationError: a stage does not fit the rest of the recipe.
        """
        return tuple(self.stage_recipe(number) for number in range(len(self.stages))) or (self,)

    def stage_recipe(self, number: int) -> Recipe:
        """The complete recipe of one stage."""
        stage = self.stages[number].model_dump(exclude_unset=True, exclude_none=True)
        stage.pop("name", None)
        whole = self.model_dump(exclude_unset=True, exclude={"stages"})
        for key, value in stage.items():
            inherited: Any = whole.get(key)
            tag = {"train": "what", "objective": "name"}.get(key)
            replaced = key == "budget" or not inherited or (tag and inherited.get(tag) != value.get(tag))
            whole[key] = value if replaced else {**inherited, **value}
        if whole.get("train", {}).get("what", "scale") == "scale":
            # Learning rates of the weights are for other stages, unless this stage sets them.
            for key in ("lr", "weight_decay"):
                if key in whole.get("optimizer", {}) and key not in stage.get("optimizer", {}):
                    whole["optimizer"] = {name: own for name, own in whole["optimizer"].items() if name != key}
        return Recipe.model_validate(whole)

    def training_options(self) -> TrainingOptions:
        """Options for the training engine, from a recipe without stages and with a resolved precision."""
        own = {name: getattr(self, name) for name in TrainingOptions.model_fields if name != "sequence_length"}
        return TrainingOptions(sequence_length=self.data.sequence_length, **own)

    @property
    def length(self) -> Budget:
        """``budget``, which a recipe without stages always has."""
        assert self.budget is not None
        return self.budget

    def stage_name(self, number: int) -> str:
        """The name of a stage, or ``stage N``."""
        return (self.stages[number].name if self.stages else None) or f"stage {number + 1}"

    @property
    def needs_operations(self) -> bool:
        """Whether only a converted model can be trained."""
        return all(train.needs_operations for train in (self.train, *(stage.train for stage in self.stages)) if train)

    @property
    def controls(self) -> tuple[ControlName, ...]:
        """``control`` as names, each once."""
        if isinstance(self.control, bool):
            return ("untouched",) if self.control else ()
        return tuple(dict.fromkeys([self.control] if isinstance(self.control, str) else self.control))

    def idle_keys(self) -> list[tuple[str, str]]:
        """Section and key of options that have no effect with the other options; setting one is an error."""
        everywhere = {self.train.what} | {stage.train.what for stage in self.stages if stage.train is not None}
        idle = [("optimizer", "lr"), ("optimizer", "weight_decay")] if everywhere == {"scale"} else []
        if self.data.held_out == 0:
            idle += [("evaluation", "every"), ("evaluation", "sequences")]
        return idle


def json_schema() -> dict[str, Any]:
    """JSON Schema of recipes, for editors."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Recipe.model_json_schema()}
