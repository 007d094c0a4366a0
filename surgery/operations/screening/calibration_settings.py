"""The settings of a calibration: how much loss is allowed, and how much text is used."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, PositiveInt

from surgery.anatomy import Anatomy
from surgery.flag import NO_FLAG, Flag
from surgery.operations.calibration_settings import BaseCalibrationSettings
from surgery.operations.screening.options import SOFTNESS

# Estimated increases of the loss, in nats per token; a sweep measures the true increases.
ALLOWED = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05)
# Least number of trials on the held-out passages, and the cost of a forward and backward pass in forward passes.
TRIALS = 6
BACKWARD_COST = 3


class CalibrationSettings(BaseCalibrationSettings):
    """How to calibrate."""

    save: Literal["keys", "memory", "time"] = Field(
        default="memory",
        description="What the allowed loss is spent on. memory: a window for each key-value group, without "
        "thresholds, for the smallest cache; time: the same for the least time of attention, by a measured model of "
        "its cost; keys: thresholds and windows that reject most keys, as a screening unit always needs them.",
    )
    context: Annotated[PositiveInt | None, Flag(absent="the longest of --lengths")] = Field(
        default=None,
        description="Tokens at which memory or time is saved; may lie beyond --lengths. No window is "
        "longer than half of the longest of --lengths.",
    )
    budget: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="Choose by softmax mass: the largest share that a head may lose in any observed passage. "
        "It is lowered where the loss would increase by more than --max-loss-increase.",
    )
    observe: Annotated[PositiveInt, Flag(("--passages",), absent="8,4", second="hold_out")] = Field(
        default=8,
        description="Passages of the shortest length to observe, and to hold out; of each other length, passages with "
        "about as many tokens.",
    )
    hold_out: Annotated[PositiveInt, NO_FLAG] = Field(
        default=4, description="Passages of the shortest length to hold out."
    )
    rows: Annotated[PositiveInt, NO_FLAG] = Field(
        default=192, description="Queries that are sampled from each observed passage."
    )
    softness: float = Field(
        default=SOFTNESS, ge=0, le=0.5, description="Width of the ramp below each threshold; 0 is a hard threshold."
    )
    windows: Annotated[Literal["head", "group"] | None, Flag(absent="group, with --save keys head")] = Field(
        default=None,
        description="A window for each query head, or one for each key-value group, so that the cache of the group can "
        "shrink; one open head in a group keeps its whole cache.",
    )

    def suited(self, form: str) -> Self:
        """With ``save: keys`` for a screening unit, if nothing else was asked for: a unit needs its thresholds."""
        chosen = form != "unit" or "save" in self.model_fields_set
        return self if chosen else self.model_copy(update={"save": "keys"})

    @property
    def by_group(self) -> bool:
        """Whether all query heads of a key-value head share a window."""
        return self.windows == "group" or (self.windows is None and self.save != "keys")


def calibration_passes(
    settings: CalibrationSettings, anatomy: Anatomy, choices: int | None = None
) -> list[tuple[int, float]]:
    """The forward passes of a calibration, for an estimate of its time: tokens of a pass, and how many there are of it.

    Args:
        settings: lengths and number of passages.
        anatomy: gives the trained length.
        choices: that a sweep measures; None for a calibration, which tries until one holds the loss.

    Raises:
        UsageError: a length is beyond the trained length.
    """
    lengths = settings.known_lengths(anatomy)
    measured = 1 + (TRIALS if choices is None else choices)  # the source too
    each = BACKWARD_COST * settings.observe + measured * settings.hold_out
    return [(length, each * min(lengths) / length) for length in lengths]
