"""What a suite can set of speed and memory."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveInt

from surgery.evaluation.part import PartOptions


class SpeedPart(PartOptions):
    """Rates of prefill and decoding; the model and its base run in turn."""

    kind: Literal["speed"]
    prefill: list[PositiveInt] = Field(default=[1024], min_length=1, description="Tokens of each timed prefill.")
    decode_after: PositiveInt = Field(default=1024, description="Tokens in the cache before decoding.")
    decode_tokens: PositiveInt = Field(default=16, description="Tokens decoded, one by one.")
    repeats: int = Field(default=5, ge=3, description="Turns; results are medians over them.")
