"""The settings of a calibration of SSMax."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated

from pydantic import Field, PositiveInt

from surgery.operations.calibration_settings import BaseCalibrationSettings
from surgery.operations.tried import QUESTION_TOKENS

# Tokens of the shortest haystack, where the longest is not shorter.
SHORTEST = 512
# Held-out passages of the shortest length; of another, about as many tokens, but no fewer than the second number.
PASSAGES, FEWEST_PASSAGES = 8, 3
HELD_OUT_HAYSTACKS = 6
# Most trials of the last step on held-out text.
TRIALS = 4
# About how many questions a haystack has: texts that are short for many facts have fewer.
QUESTIONS = 17
# Cost of a forward and two backward passes, in forward passes; a question has one backward pass.
GRADIENT_COST, QUESTION_COST = 4, 3


class SSMaxCalibrationSettings(BaseCalibrationSettings):
    """How to calibrate SSMax: facts are hidden in the texts, and the answers shall become likelier."""

    max_loss_increase: float = Field(
        default=0.002,
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

    def gradient_passes(self, lengths: Sequence[int]) -> list[tuple[int, float]]:
        """The gradients of all haystacks, in forward passes: tokens of a pass, and how many there are of it."""
        haystacks = self.rounds * self.haystacks
        return [
            (_typical(lengths), GRADIENT_COST * haystacks),
            (QUESTION_TOKENS, QUESTION_COST * QUESTIONS * haystacks),
        ]

    def guard_passes(self, lengths: Sequence[int]) -> list[tuple[int, float]]:
        """Measuring the source and each trial on held-out text, in the same terms."""
        measured = TRIALS + 1
        haystacks = measured * HELD_OUT_HAYSTACKS
        return [
            (_typical(lengths), haystacks),
            (QUESTION_TOKENS, QUESTIONS * haystacks),
            *((length, measured * self.passages(length, lengths)) for length in sorted(set(lengths))),
        ]

    def passes(self, lengths: Sequence[int]) -> list[tuple[int, float]]:
        """Of a whole calibration, for estimates of time."""
        return [*self.gradient_passes(lengths), *self.guard_passes(lengths)]


def _typical(lengths: Sequence[int]) -> int:
    """Tokens of a haystack of the mean length: the logarithm is drawn evenly."""
    longest = max(lengths)
    low, high = math.log(min(SHORTEST, longest)), math.log(longest)
    return round((longest - min(SHORTEST, longest)) / (high - low)) if high > low else longest
