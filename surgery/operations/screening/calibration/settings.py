"""The settings of a calibration, and their checks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, field_validator

from surgery.anatomy import Anatomy
from surgery.errors import UsageError
from surgery.operations.screening import SOFTNESS, ScreeningOptions


class CalibrationSettings(BaseModel):
    """How to calibrate.

    Attributes:
        max_loss_increase: the loss of no held-out passage may rise by more, in nats per token.
        budget: choose by softmax mass instead: no head loses a greater share of it in any observed passage. The
            budget is lowered where the loss would rise by more than ``max_loss_increase``.
        lengths: tokens per passage; by default 1024 and 4096, no longer than the model was trained at.
        observe, hold_out: passages of the shortest length; of the others as many as make about as many tokens.
        rows: queries that are looked at in each observed passage.
        softness: width of the ramp below each threshold; 0 is hard.
        windows: one for each head, or one for the query heads of each key-value group, whose cache then can shrink: a
            single open head keeps it whole.
        seed: of the sample of queries.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_loss_increase: float = Field(default=0.005, gt=0, allow_inf_nan=False)
    budget: float | None = Field(default=None, gt=0, lt=1)
    lengths: tuple[PositiveInt, ...] | None = None
    observe: PositiveInt = 8
    hold_out: PositiveInt = 4
    rows: PositiveInt = 192
    softness: float = Field(default=SOFTNESS, ge=0, le=0.5)
    windows: Literal["head", "group"] = "head"
    seed: int = 0

    @field_validator("lengths")
    @classmethod
    def _long_enough(cls, value: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if value is not None and (not value or min(value) < 16):
            raise ValueError("a passage needs at least 16 tokens")
        return value


def check_settings(settings: CalibrationSettings, options: Mapping[str, Any]) -> None:
    """Refuse what would not do what it says.

    Raises:
        UsageError: windows are shared by groups of which some heads are left out; or a setting of the guard, or of
            windows, is given for a unit, which no guard could hold.
    """
    if settings.windows == "group" and options.get("heads") is not None:
        raise UsageError(
            "windows by group need all heads of a group, but heads chooses some",
            hint="Leave heads out, or let each head have its own window.",
        )
    if options.get("form") != "unit" or options.get("renormalisation") == 1:
        return
    given = sorted({"max_loss_increase", "budget", "softness", "windows"} & settings.model_fields_set)
    if given:
        raise UsageError(
            f"{given[0]} does nothing for the form unit: its heads are fitted to attention's outputs, and training "
            "brings the loss back",
            hint="Leave it out; or start at the other end of the bridge, with renormalisation 1.",
        )


def known_lengths(settings: CalibrationSettings, anatomy: Anatomy) -> tuple[int, ...]:
    """The lengths that are asked for, or the usual ones.

    Raises:
        UsageError: the model was not trained at them.
    """
    lengths = settings.lengths or tuple(length for length in (1024, 4096) if length <= anatomy.trained_length)
    if not lengths or max(lengths) > anatomy.trained_length:
        raise UsageError(
            f"the model was trained at {anatomy.trained_length} tokens; passages of "
            f"{' and '.join(map(str, lengths or (1024, 4096)))} go beyond",
            hint=f"Give lengths that it knows: --lengths {anatomy.trained_length}",
        )
    return lengths


def recorded(
    settings: CalibrationSettings,
    lengths: Sequence[int],
    screening: ScreeningOptions,
    before: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """What a calibration says of how it was made."""
    return {
        **settings.model_dump(mode="json"),
        "lengths": list(lengths),
        "heads": None if screening.heads is None else list(screening.heads),
        "sinks": screening.sinks,
        "full_window": screening.full_window,
        "before": [str(other["name"]) for other in before],
        **({} if screening.form == "gated" else {"form": "unit", "renormalisation": screening.renormalisation}),
    }
