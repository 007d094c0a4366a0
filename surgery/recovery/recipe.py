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
    field_validator,
    model_validator,
)

_RANGE = re.compile(r"(\d{1,6})(?:-(\d{1,6}))?")


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Data(_Section):
    """The text: which files, which part is held out, how it is cut into sequences."""

    text: str | list[str] = Field(description="Files, folders and globs.")
    separator: str | None = Field(
        default=None,
        min_length=1,
        description="Text between documents of one file; without it each file is one document.",
    )
    held_out: Annotated[float, Field(ge=0, lt=1)] | list[str] = Field(
        default=0.1, description="Share of the text, in whole documents, or the files to hold out."
    )
    sequence_length: Annotated[int, Field(ge=2)] = Field(default=1024, description="Tokens per sequence.")
    packing: bool = Field(
        default=True, description="Fill sequences with several documents, which do not see each other."
    )

    @property
    def patterns(self) -> list[str]:
        """``text`` as a list."""
        return [self.text] if isinstance(self.text, str) else list(self.text)

    @field_validator("text", "held_out")
    @classmethod
    def _not_empty(cls, value: Any) -> Any:
        if value in ("", []) or (isinstance(value, list) and "" in value):
            raise ValueError("must name at least one file, folder or glob")
        return value


class _Train(_Section):
    layers: str | list[NonNegativeInt] = Field(default="all", description="all, ranges like 0-9,20, or a list.")

    @field_validator("layers")
    @classmethod
    def _layers(cls, value: str | list[int]) -> str | list[int]:
        if isinstance(value, str) and value != "all":
            for part in value.split(","):
                match = _RANGE.fullmatch(part.strip())
                if match is None or (match[2] is not None and int(match[2]) < int(match[1])):
                    raise ValueError(f"{part.strip()!r} is neither a layer nor a range like 0-9")
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

    For forms that change the model at the start (``paper``); one that starts as the identity has nothing to learn here.
    """

    name: Literal["distill"]
    temperature: PositiveFloat = Field(default=1.0, description="Both distributions are softened by it.")
    share: Annotated[float, Field(gt=0, le=1)] = Field(
        default=1.0, description="Weight of it; the rest is next-token loss."
    )


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
            raise ValueError("give exactly one of tokens and steps (null takes one away)")
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


class Recipe(_Section):
    """A recovery run, whole."""

    model: str = Field(min_length=1, description="Folder or hub id of a converted checkpoint.")
    output: str = Field(min_length=1, description="Folder for the trained checkpoint.")
    data: Data
    train: Annotated[TrainScale | TrainLora | TrainFull, Field(discriminator="what")] = TrainScale()
    objective: Annotated[NextToken | Distill, Field(discriminator="name")] = NextToken()
    optimizer: Optimizer = Optimizer()
    budget: Budget
    batch: Batch = Batch()
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
    report_to: list[str] = Field(default=[], description="Trackers as transformers names them: tensorboard, wandb, ...")

    @model_validator(mode="after")
    def _nothing_without_effect(self) -> Self:
        idle = [key for section, key in self.idle_keys() if key in getattr(self, section).model_fields_set]
        if "lr" in idle or "weight_decay" in idle:
            raise ValueError(
                f"optimizer.{idle[0]} does nothing when train.what is scale; set optimizer.scale_lr, "
                "or train.what to scale+lora or full"
            )
        if idle:
            raise ValueError(f"evaluation.{idle[0]} does nothing when data.held_out is 0")
        if self.train.what == "full" and self.objective.name == "distill":
            raise ValueError(
                "objective.name distill needs the original weights in place, which train.what full changes; "
                "use scale or scale+lora"
            )
        if self.optimizer.warmup >= 1 and self.optimizer.warmup != int(self.optimizer.warmup):
            raise ValueError(f"optimizer.warmup {self.optimizer.warmup:g} is neither a number of steps nor below 1")
        return self

    def idle_keys(self) -> list[tuple[str, str]]:
        """Section and key of options that have no effect beside the others; giving one is an error."""
        idle = [("optimizer", "lr"), ("optimizer", "weight_decay")] if self.train.what == "scale" else []
        if self.data.held_out == 0:
            idle += [("evaluation", "every"), ("evaluation", "sequences")]
        return idle


def json_schema() -> dict[str, Any]:
    """JSON Schema of recipes, for editors."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Recipe.model_json_schema()}
