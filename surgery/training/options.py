"""The options of a training: objective, optimizer, length, batch, precision, checkpoints. Imports no torch."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from surgery.schemas.section import Section
from surgery.training.objectives import AnyObjective, NextToken

GradientCheckpointing = Annotated[bool, Field(description="Recompute activations: less memory, more time.")]


class AdamW(Section):
    """AdamW, with its learning rate over the steps."""

    lr: PositiveFloat = Field(default=1e-4, description="Learning rate of all other parameters.")
    weight_decay: NonNegativeFloat = Field(
        default=0.0, description="Weight decay of all other parameters, except norms and biases."
    )
    betas: Annotated[list[Annotated[float, Field(ge=0, lt=1)]], Field(min_length=2, max_length=2)] = Field(
        default=[0.9, 0.99], description="AdamW's beta1 and beta2."
    )
    epsilon: PositiveFloat = Field(default=1e-8, description="AdamW's epsilon.")
    schedule: Literal["constant", "linear", "cosine"] = Field(
        default="cosine", description="Learning rate after warmup."
    )
    warmup: NonNegativeFloat | NonNegativeInt = Field(
        default=0.1, description="Warmup in steps, or below 1 as a share of all steps."
    )
    clip: NonNegativeFloat = Field(default=1.0, description="Largest gradient norm; 0 turns clipping off.")


class Budget(Section):
    """Length of the training, in tokens or in optimizer steps."""

    tokens: PositiveInt | None = Field(
        default=None, description="Number of training tokens, rounded up to whole steps."
    )
    steps: PositiveInt | None = Field(default=None, description="Number of optimizer steps.")

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        if (self.tokens is None) == (self.steps is None):
            raise ValueError("give exactly one of tokens and steps; null removes the other, as in `budget.tokens=null`")
        return self


class Batch(Section):
    """Sequences in one optimizer step: ``sequences * accumulation`` for each process."""

    sequences: PositiveInt = Field(default=1, description="Sequences per forward pass.")
    accumulation: PositiveInt = Field(default=1, description="Forward passes per optimizer step.")


class Evaluation(Section):
    """Loss on the held-out text, measured before and after training in any case."""

    every: NonNegativeInt = Field(default=0, description="Steps between evaluations during training; 0 turns them off.")
    sequences: PositiveInt = Field(default=64, description="Largest number of held-out sequences.")


class Checkpoints(Section):
    """Saved training state, from which ``--resume`` continues."""

    every: PositiveInt = Field(default=50, description="Steps between checkpoints; the last step is always saved.")
    keep: PositiveInt = Field(default=2, description="Number of latest checkpoints to keep.")


class Guard(Section):
    """Stops a run whose loss stays far above its lowest level, and keeps the last checkpoint from before the rise."""

    steps: NonNegativeInt = Field(
        default=20,
        description="Number of consecutive steps with a risen loss that stop the run; 0 turns the guard off.",
    )
    rise: PositiveFloat = Field(
        default=0.5,
        description="A loss has risen when it exceeds the lowest mean loss over `steps` steps by this share.",
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
