"""The settings of a calibration of SSMax."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated

from pydantic import Field, PositiveInt

from surgery.operations.calibration_settings import BaseCalibrationSettings

# Tokens of the shortest haystack, where the longest is not shorter.
SHORTEST = 512
# Held-out passages of the shortest length; of another, about as many tokens, but no fewer than the second number.
PASSAGES, FEWEST_PASSAGES = 8, 3
HELD_OUT_HAYSTACKS = 6
# Most trials of the last step on held-out text.
TRIALS = 4
# Cost of a forward and two backward passes, in forward passes.
GRADIENT_COST = 3


class SSMaxCalibrationSettings(BaseCalibrationSettings):
    """How to calibrate SSMax: facts are hidden in the texts, and the answers shall become likelier."""

    max_loss_increase: float = Field(
        default=0.005,
        gt=0,
        allow_inf_nan=False,
        description="Largest mean increase of the loss over the held-out passages of one length, in nats per token.",
    )
    haystacks: Annotated[int, Field(ge=4, le=10_000)] = Field(
        default=24, description="Texts with hidden facts that each round learns from."
    )
    rounds: PositiveInt = Field(
        default=1, le=20, description="Steps, each from the gradients of other haystacks at the numbers so far."
    )

    def passages(self, length: int, lengths: Sequence[int]) -> int:
        """Number of held-out passages of a length."""
        return max(FEWEST_PASSAGES, PASSAGES * min(lengths) // length)

    @property
    def gradient_passes(self) -> int:
        """The gradients of all haystacks, in forward passes."""
        return GRADIENT_COST * self.rounds * self.haystacks

    def passes(self, lengths: Sequence[int]) -> list[tuple[int, float]]:
        """Tokens of a forward pass, and how many passes of it a calibration takes; for estimates of time."""
        longest = max(lengths)
        # A haystack of the mean length: the logarithm is drawn evenly.
        low, high = math.log(min(SHORTEST, longest)), math.log(longest)
        typical = round((longest - min(SHORTEST, longest)) / (high - low)) if high > low else longest
        measured = TRIALS + 1
        return [
            (typical, self.gradient_passes + measured * HELD_OUT_HAYSTACKS),
            *((length, measured * self.passages(length, lengths)) for length in sorted(set(lengths))),
        ]
