"""The settings that every calibration has: its lengths, the loss that it may cost, and a seed."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, field_validator

from surgery.anatomy import Anatomy
from surgery.errors import UsageError
from surgery.flag import NO_FLAG, Flag

# Of calibration texts, where the model was trained at as many tokens.
DEFAULT_LENGTHS = (1024, 4096)


class BaseCalibrationSettings(BaseModel):
    """How to calibrate an operation."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    max_loss_increase: float = Field(
        default=0.005,
        gt=0,
        allow_inf_nan=False,
        description="Largest increase of the loss of any held-out passage, in nats per token.",
    )
    lengths: Annotated[tuple[PositiveInt, ...] | None, Flag(absent=",".join(map(str, DEFAULT_LENGTHS)))] = Field(
        default=None, description="Tokens per passage, no more than the trained length."
    )
    seed: Annotated[int, NO_FLAG] = Field(default=0, description="Seed of all that is drawn.")

    @field_validator("lengths", mode="before")
    @classmethod
    def _numbers(cls, value: Any) -> Any:
        """``1024,4096`` as (1024, 4096)."""
        if not isinstance(value, str):
            return value
        parts = [part.strip() for part in value.split(",")]
        if not all(part.isascii() and part.isdigit() for part in parts):
            raise ValueError("not whole numbers with commas between, such as 1024,4096")
        return tuple(map(int, parts))

    @field_validator("lengths")
    @classmethod
    def _long_enough(cls, value: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if value is not None and (not value or min(value) < 16):
            raise ValueError("a passage needs at least 16 tokens")
        return value

    def known_lengths(self, anatomy: Anatomy) -> tuple[int, ...]:
        """The lengths, or the default lengths.

        Raises:
            UsageError: a length is beyond the trained length.
        """
        lengths = self.lengths or tuple(length for length in DEFAULT_LENGTHS if length <= anatomy.trained_length)
        if not lengths or max(lengths) > anatomy.trained_length:
            raise UsageError(
                f"the model was trained at {anatomy.trained_length} tokens; passages of "
                f"{' and '.join(map(str, lengths or DEFAULT_LENGTHS))} tokens are longer",
                hint=f"Pass lengths up to the trained length: --lengths {anatomy.trained_length}.",
            )
        return lengths
