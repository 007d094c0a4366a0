"""What a recovery recipe can say: one strict schema, the same for YAML, ``--set`` and Python.

Where an option depends on another (LoRA's rank on training LoRA) the options are a union told apart by one key, so
that a key which would do nothing is refused rather than ignored.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from surgery.data import AnySource, DataSource, LongDocuments, TextSource
from surgery.operations import AnyOperation

ControlName = Literal["untouched", "temperature"]
_RANGE = re.compile(r"(\d{1,6})(?:-(\d{1,6}))?")


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Data(_Section):
    """The text: which files, which part is held out, how it is cut into sequences."""

    text: str | list[str] | None = Field(default=None, description="Text files, folders and globs.")
    sources: list[AnySource] = Field(
        default=[], description="In place of text: several sources, of any kind, mixed by weight."
    )
    separator: str | None = Field(
        default=None,
        min_length=1,
        description="Text between documents of one file; without it each file is one document.",
    )
    held_out: Annotated[float, Field(ge=0, lt=1)] | list[str] = Field(
        default=0.1, description="Share of the text, in whole documents, or the files to hold out."
    )
    sequence_length: Annotated[int, Field(ge=2)] = Field(default=1024, description="Tokens per sequence.")
    long_documents: LongDocuments = Field(
        default="cut",
        description="Documents above sequence_length are cut into pieces, each read as a document of its own; or only "
        "their start is used; or they drop out.",
    )
    streaming: bool = Field(
        default=False,
        description="Read as training needs it instead of all at once. Held out is then each document whose hash falls "
        "into the share, and order is mixed within windows.",
    )
    packing: bool = Field(
        default=True, description="Fill sequences with several documents, which do not see each other."
    )

    @property
    def patterns(self) -> list[str]:
        """``text`` as a list."""
        return [self.text] if isinstance(self.text, str) else list(self.text or [])

    @property
    def all_sources(self) -> list[tuple[str, DataSource]]:
        """Each source with the key that it has in the recipe."""
        if self.text is None:
            return [(f"data.sources.{number}", source) for number, source in enumerate(self.sources)]
        return [("data.text", TextSource(kind="text", path=self.text, separator=self.separator))]

    @model_validator(mode="after")
    def _text_or_sources(self) -> Self:
        if self.text is None and not self.sources:
            raise PydanticCustomError("missing_key", "missing", {"key": "text"})
        if self.text is not None and self.sources:
            raise ValueError("give either text or sources")
        if self.sources and self.separator is not None:
            raise ValueError("separator does nothing beside sources; it belongs to a source of kind text")
        return self

    @field_validator("text", "held_out")
    @classmethod
    def _not_empty(cls, value: Any) -> Any:
        if value in ("", []) or (isinstance(value, list) and "" in value):
            raise ValueError("must name at least one file, folder or glob")
        return value


class _Train(_Section):
    layers: str | list[NonNegativeInt] = Field(default="all", description="all, ranges like 0-9,20, or a list.")

    @field_validator("layers", mode="before")
    @classmethod
    def _one_layer(cls, value: Any) -> Any:
        return [value] if type(value) is int else value

    @field_validator("layers")
    @classmethod
    def _layers(cls, value: str | list[int]) -> str | list[int]:
        if isinstance(value, str) and value != "all":
            for part in value.split(","):
                match = _RANGE.fullmatch(part.strip())
                if match is None or (match[2] is not None and int(match[2]) < int(match[1])):
                    raise ValueError("must hold layers and ranges of layers, such as 0-9,12")
        elif value == []:
            raise ValueError("must name at least one layer")
        return value

    def chosen_layers(self, count: int) -> list[int]:
        """The layers as numbers, ascending, for a model of ``count`` layers; some may lie beyond it."""
        if self.layers == "all":
            return list(range(count))
        if isinstance(self.layers, list):
            return sorted(set(self.layers))
        chosen: set[int] = set()
        for part in self.layers.split(","):
            first, _, last = part.strip().partition("-")
            chosen.update(range(int(first), int(last or first) + 1))
        return sorted(chosen)


class TrainScale(_Train):
    """Only the parameters that the operation added: a few hundred numbers."""

    what: Literal["scale"] = "scale"


class TrainLora(_Train):
    """The operation's parameters, and low-rank changes of the attention's linear layers."""

    what: Literal["scale+lora"]
    rank: PositiveInt = Field(default=16, description="Rank of each low-rank change.")
    alpha: PositiveFloat = Field(default=32.0, description="The change is multiplied by alpha / rank.")
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(default=0.0, description="Dropout before the low-rank change.")
    rslora: bool = Field(default=False, description="Multiply by alpha / sqrt(rank) instead.")
    merge: bool = Field(
        default=True,
        description="Add the change to the weights in the end; otherwise the output is the adapter, for PEFT and "
        "`surgery merge`, and names its base.",
    )
    dora: bool = Field(default=False, description="Learn magnitude and direction apart (DoRA).")
    targets: Literal["auto"] | list[str] = Field(
        default="auto", description="Names of linear layers in the attention; auto takes all of them."
    )


class TrainFull(_Train):
    """Every weight of the chosen layers; with all layers also embeddings, final norm and head."""

    what: Literal["full"]


class NextToken(_Section):
    """Cross-entropy of the next token."""

    name: Literal["next_token"] = "next_token"


class Distill(_Section):
    """Kullback-Leibler divergence from the original: the same weights with operation and adapter switched off.

    Where ``train.what: full`` changes those weights, a second copy of the model teaches, which takes its memory again.
    For forms that change the model at the start (``paper``); one that starts as the identity has nothing to learn here.
    """

    name: Literal["distill"]
    temperature: PositiveFloat = Field(default=1.0, description="Both distributions are softened by it.")
    share: Annotated[float, Field(gt=0, le=1)] = Field(
        default=1.0, description="Weight of it; the rest is next-token loss."
    )


class Match(_Section):
    """Squared error of each operated attention's output against the same attention without operation and adapter.

    Each layer is fed what reaches it in the original, so the layers learn independently. A first stage for forms that
    change the model at the start; what is outside the attention learns nothing.
    """

    name: Literal["match"]


class Sparsity(_Section):
    """Screening is to reject keys: a price, beside the objective, on those that it accepts.

    What is counted are all keys of all heads, in the layers whose thresholds are trained. The count is exact; its
    gradient is that of a soft count, which keys that are just rejected or just accepted move most.
    """

    target: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        default=None,
        description="Share of the keys to reject. The price is paid below it alone; without it, always.",
    )
    weight: PositiveFloat = Field(
        default=1.0, description="The price: so many nats per token is it worth to reject all keys rather than none."
    )

    @model_validator(mode="after")
    def _asks_for_something(self) -> Self:
        if self.target is None and "weight" not in self.model_fields_set:
            raise ValueError("give target, or weight, or both")
        return self

    def described(self) -> str:
        """In words."""
        wanted = "keys rejected" if self.target is None else f"{self.target:.0%} of the keys rejected"
        return f"{wanted}, at a price of {self.weight:g} nats"


class Softness(_Section):
    """Screening's softness tau over the steps, the same for all heads, in place of learning it."""

    start: NonNegativeFloat = Field(description="At the first step.")
    end: NonNegativeFloat = Field(description="At the last step, and after it; 0 is hard.")
    schedule: Literal["linear", "geometric"] = Field(
        default="linear", description="How it goes from one to the other: equal steps, or equal factors."
    )

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.schedule == "geometric" and 0 in (self.start, self.end):
            raise ValueError("schedule: geometric cannot start or end at 0; set linear")
        return self

    def described(self) -> str:
        """In words."""
        return f"softness from {self.start:g} to {self.end:g}"


class Bridge(_Section):
    """Screening of form ``unit``: its exponent p over the steps, from softmax (1) to the unit (0), for all heads.

    softness goes towards 1 - t, window edges become cosines, and gain and bound come in, as p goes. It is linear in the
    steps. The guard does not watch meanwhile: the loss rises as softmax goes.
    """

    start: Annotated[float, Field(ge=0, le=1)] = Field(default=1.0, description="At the first step; 1 is gated.")
    end: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.0, description="At the last step, and after it; 0 is the unit."
    )

    def described(self) -> str:
        """In words."""
        return f"renormalisation from {self.start:g} to {self.end:g}"


class Optimizer(_Section):
    """AdamW. The operation's parameters have their own learning rate and never decay."""

    scale_lr: PositiveFloat = Field(default=0.005, description="Learning rate of the operation's parameters.")
    lr: PositiveFloat = Field(default=1e-4, description="Learning rate of everything else.")
    weight_decay: NonNegativeFloat = Field(
        default=0.0, description="Of everything else; norms and biases do not decay."
    )
    betas: Annotated[list[Annotated[float, Field(ge=0, lt=1)]], Field(min_length=2, max_length=2)] = Field(
        default=[0.9, 0.99], description="Decay of the two averages."
    )
    epsilon: PositiveFloat = Field(default=1e-8, description="Added to the denominator.")
    schedule: Literal["constant", "linear", "cosine"] = Field(default="cosine", description="After warmup.")
    warmup: NonNegativeFloat | NonNegativeInt = Field(
        default=0.1, description="Steps, or a share of all steps when below 1."
    )
    clip: NonNegativeFloat = Field(default=1.0, description="Largest gradient norm; 0 for none.")


class Budget(_Section):
    """How long: tokens or optimizer steps."""

    tokens: PositiveInt | None = Field(default=None, description="Tokens to train on, rounded up to whole steps.")
    steps: PositiveInt | None = Field(default=None, description="Optimizer steps.")

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        if (self.tokens is None) == (self.steps is None):
            raise ValueError(
                "give exactly one of tokens and steps; null takes the other away, as in `budget.tokens=null`"
            )
        return self


class Batch(_Section):
    """Sequences in one optimizer step: ``sequences * accumulation`` for each process."""

    sequences: PositiveInt = Field(default=1, description="Sequences per forward pass.")
    accumulation: PositiveInt = Field(default=1, description="Forward passes per optimizer step.")


class Evaluation(_Section):
    """Loss on the held-out part; before and after training always."""

    every: NonNegativeInt = Field(default=0, description="Steps between evaluations during training; 0 for none.")
    sequences: PositiveInt = Field(default=64, description="At most so many held-out sequences.")


class Checkpoints(_Section):
    """Training state, from which ``--resume`` goes on."""

    every: PositiveInt = Field(default=50, description="Steps between checkpoints; the last step always has one.")
    keep: PositiveInt = Field(default=2, description="How many of the latest are kept.")


class Guard(_Section):
    """Stops a run whose loss stays far above what it was, and keeps the last checkpoint from before."""

    steps: NonNegativeInt = Field(default=20, description="So many steps in a row; 0 for no guard.")
    rise: PositiveFloat = Field(
        default=0.5, description="Share by which each of them is above the lowest mean loss over as many steps."
    )


class StageData(_Section):
    """What a stage may say about the data."""

    sequence_length: Annotated[int, Field(ge=2)] = Field(description="Tokens per sequence in this stage.")


class Stage(_Section):
    """One part of a run. What it does not say is as in the recipe; ``budget`` and ``objective`` are replaced whole."""

    name: str | None = Field(default=None, min_length=1, description="For the log.")
    budget: Budget | None = Field(default=None, description="How long this stage is.")
    data: StageData | None = Field(default=None, description="Its sequence_length.")
    train: Annotated[TrainScale | TrainLora | TrainFull, Field(discriminator="what")] | None = Field(
        default=None, description="What this stage trains."
    )
    objective: Annotated[NextToken | Distill | Match, Field(discriminator="name")] | None = Field(
        default=None, description="What this stage minimises."
    )
    sparsity: Sparsity | None = Field(default=None, description="How many keys screening is to reject.")
    softness: Softness | None = Field(default=None, description="How screening's softness goes in this stage.")
    bridge: Bridge | None = Field(default=None, description="How far screening units go from softmax in this stage.")
    optimizer: Optimizer | None = Field(default=None, description="Rates and schedule; the schedule spans the stage.")
    batch: Batch | None = Field(default=None, description="Sequences per step in this stage.")


class Recipe(_Section):
    """A recovery run, whole."""

    model: str = Field(
        min_length=1, description="Folder or hub id of a converted checkpoint; or of a source, with operations."
    )
    operations: list[AnyOperation] = Field(
        default=[],
        description="What to perform on the model first, in order, as `surgery convert` would. The run trains the "
        "result.",
    )
    output: str = Field(min_length=1, description="Folder for the trained checkpoint.")
    data: Data
    train: Annotated[TrainScale | TrainLora | TrainFull, Field(discriminator="what")] = TrainScale()
    objective: Annotated[NextToken | Distill | Match, Field(discriminator="name")] = NextToken()
    sparsity: Sparsity | None = None
    softness: Softness | None = None
    bridge: Bridge | None = None
    optimizer: Optimizer = Optimizer()
    budget: Budget | None = Field(default=None, description="Needed unless every stage says it.")
    batch: Batch = Batch()
    stages: list[Stage] = Field(
        default=[], description="Parts of the run, one after the other, each with what it does differently."
    )
    precision: Literal["auto", "float32", "bfloat16", "bfloat16-mixed"] = Field(
        default="auto",
        description="auto: the checkpoint's dtype, but bfloat16-mixed where full trains a bfloat16 checkpoint. mixed: "
        "float32 weights, bfloat16 arithmetic. The operation's parameters are float32 in any case.",
    )
    gradient_checkpointing: bool = Field(default=False, description="Recompute activations: less memory, more time.")
    seed: NonNegativeInt = Field(
        default=0, description="Of the split, the order of the data, LoRA's start and dropout."
    )
    evaluation: Evaluation = Evaluation()
    checkpoints: Checkpoints = Checkpoints()
    guard: Guard = Guard()
    control: bool | ControlName | Annotated[list[ControlName], Field(min_length=1)] = Field(
        default=False,
        description="Run the same tokens and seed on other models and compare. untouched (or true): the model without "
        "the operation, with the same adapter or weights to train. temperature: one learned constant per head in place "
        "of the operation's number, without ln n. Each costs as much as the run itself.",
    )
    report_to: list[str] = Field(default=[], description="Trackers as transformers names them: tensorboard, wandb, ...")

    @model_validator(mode="after")
    def _nothing_without_effect(self) -> Self:
        if not self.stages:
            self._check_budget()
        idle = [key for section, key in self.idle_keys() if key in getattr(self, section).model_fields_set]
        if "lr" in idle or "weight_decay" in idle:
            raise ValueError(
                f"optimizer.{idle[0]} does nothing when train.what is scale; set optimizer.scale_lr, "
                "or train.what to scale+lora or full"
            )
        if idle:
            raise ValueError(f"evaluation.{idle[0]} does nothing when data.held_out is 0")
        if self.controls and self.data.held_out == 0:
            raise ValueError("control does nothing when data.held_out is 0: there is nothing to compare on")
        if self.optimizer.warmup >= 1 and self.optimizer.warmup != int(self.optimizer.warmup):
            raise ValueError(f"optimizer.warmup {self.optimizer.warmup:g} is neither a number of steps nor below 1")
        if self.operations and isinstance(self.train, TrainLora) and not self.train.merge:
            raise ValueError(
                "train.merge: false leaves an adapter that needs its base, which operations make for this run alone; "
                "convert the model first, and give the converted one"
            )
        self._check_stages()
        return self

    def _check_budget(self) -> None:
        if self.budget is None:
            raise PydanticCustomError("missing_key", "missing", {"key": "budget"})

    def _check_stages(self) -> None:
        """Validate each stage as the recipe that it is."""
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
        if {"scale+lora", "full"} <= what:
            raise ValueError("stages cannot train scale+lora and full in one run: an adapter sits on fixed weights")
        shapes = [stage.train.model_dump(exclude={"layers"}) for stage in stages if isinstance(stage.train, TrainLora)]
        layers = [stage.train.layers for stage in stages if isinstance(stage.train, TrainLora)]
        if any(shape != shapes[0] for shape in shapes) or any(chosen != layers[0] for chosen in layers):
            raise ValueError("stages that train scale+lora share one adapter: give rank, targets and the like in train")

    def stage_recipes(self) -> tuple[Recipe, ...]:
        """The recipe of each stage, whole and without stages; the recipe itself where it has none.

        Raises:
            ValidationError: what a stage says does not go together with the rest.
        """
        return tuple(self.stage_recipe(number) for number in range(len(self.stages))) or (self,)

    def stage_recipe(self, number: int) -> Recipe:
        """One of them."""
        stage = self.stages[number].model_dump(exclude_unset=True, exclude_none=True)
        stage.pop("name", None)
        whole = self.model_dump(exclude_unset=True, exclude={"stages"})
        for key, value in stage.items():
            inherited: Any = whole.get(key)
            tag = {"train": "what", "objective": "name"}.get(key)
            replaced = key == "budget" or not inherited or (tag and inherited.get(tag) != value.get(tag))
            whole[key] = value if replaced else {**inherited, **value}
        if whole.get("train", {}).get("what", "scale") == "scale":
            # Rates of the weights are meant for other stages, unless this one gives them.
            for key in ("lr", "weight_decay"):
                if key in whole.get("optimizer", {}) and key not in stage.get("optimizer", {}):
                    whole["optimizer"] = {name: own for name, own in whole["optimizer"].items() if name != key}
        return Recipe.model_validate(whole)

    @property
    def length(self) -> Budget:
        """``budget``, which a recipe without stages always has."""
        assert self.budget is not None
        return self.budget

    def stage_name(self, number: int) -> str:
        """Its name, or its number."""
        return (self.stages[number].name if self.stages else None) or f"stage {number + 1}"

    @property
    def controls(self) -> tuple[ControlName, ...]:
        """``control`` as names, each once."""
        if isinstance(self.control, bool):
            return ("untouched",) if self.control else ()
        return tuple(dict.fromkeys([self.control] if isinstance(self.control, str) else self.control))

    def idle_keys(self) -> list[tuple[str, str]]:
        """Section and key of options that have no effect beside the others; giving one is an error."""
        everywhere = {self.train.what} | {stage.train.what for stage in self.stages if stage.train is not None}
        idle = [("optimizer", "lr"), ("optimizer", "weight_decay")] if everywhere == {"scale"} else []
        if self.data.held_out == 0:
            idle += [("evaluation", "every"), ("evaluation", "sequences")]
        return idle


def json_schema() -> dict[str, Any]:
    """JSON Schema of recipes, for editors."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Recipe.model_json_schema()}
