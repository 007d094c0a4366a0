"""The options of a training: objective, optimizer, length, batch, precision, checkpoints. Imports no torch."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from surgery.schemas.section import Section
from surgery.training.objectives import AnyObjective, NextToken

GradientCheckpointing = Annotated[bool, Field(description="Recompute activations: less memory, more time.")]


class AdamW(Section):
    """AdamW, with its learning rate over the steps."""

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


class Budget(Section):
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


class Batch(Section):
    """Sequences in one optimizer step: ``sequences * accumulation`` for each process."""

    sequences: PositiveInt = Field(default=1, description="Sequences per forward pass.")
    accumulation: PositiveInt = Field(default=1, description="Forward passes per optimizer step.")


class Evaluation(Section):
    """Loss on the held-out part; before and after training always."""

    every: NonNegativeInt = Field(default=0, description="Steps between evaluations during training; 0 for none.")
    sequences: PositiveInt = Field(default=64, description="At most so many held-out sequences.")


class Checkpoints(Section):
    """Training state, from which ``--resume`` goes on."""

    every: PositiveInt = Field(default=50, description="Steps between checkpoints; the last step always has one.")
    keep: PositiveInt = Field(default=2, description="How many of the latest are kept.")


class Guard(Section):
    """Stops a run whose loss stays far above what it was, and keeps the last checkpoint from before."""

    steps: NonNegativeInt = Field(default=20, description="So many steps in a row; 0 for no guard.")
    rise: PositiveFloat = Field(
        default=0.5, description="Share by which each of them is above the lowest mean loss over as many steps."
    )


class TrainingOptions(Section):
    """One stage of a training, with every choice made.

    Attributes:
        sequence_length: tokens of a row.
        precision: dtype of weights and arithmetic; ``bfloat16-mixed`` has float32 weights and bfloat16 arithmetic.
        seed: of the order of the rows and of dropout.
        report_to: trackers as transformers names them.
    """

    sequence_length: Annotated[int, Field(ge=2)]
    budget: Budget
    objective: AnyObjective = NextToken()
    optimizer: AdamW = AdamW()
    batch: Batch = Batch()
    evaluation: Evaluation = Evaluation()
    checkpoints: Checkpoints = Checkpoints()
    guard: Guard = Guard()
    precision: Literal["float32", "bfloat16", "bfloat16-mixed"] = "float32"
    gradient_checkpointing: GradientCheckpointing = False
    seed: NonNegativeInt = 0
    report_to: list[str] = Field(default=[])
