"""The sections of a recipe that belong to screening: a share of rejected keys, and scheduled parameters."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from surgery.schemas.section import Section


class Sparsity(Section):
    """A price on accepted keys, on the cache or on the time of attention, added to the objective.

    By keys, all keys of all heads count, in the layers whose thresholds are trained. The count is exact. Its gradient
    is that of a soft count, in which keys close to the threshold weigh most. By memory or time, the windows of the
    key-value heads count, and only windows are trained.
    """

    save: Literal["keys", "memory", "time"] = Field(
        default="keys",
        description="What is to be saved: keys; memory of the key-value cache; time of attention, by the model of its "
        "cost. With memory and time only windows are trained, and an open head stays open.",
    )
    context: PositiveInt | None = Field(
        default=None, description="Tokens at which memory or time is saved; needed with them."
    )
    target: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        default=None,
        description="Share of keys to reject, or of the cache or time to save. The price is paid only below it; "
        "without a target it is always paid.",
    )
    weight: PositiveFloat = Field(default=1.0, description="Penalty in nats per token when nothing is saved.")

    @model_validator(mode="after")
    def _asks_for_something(self) -> Self:
        if self.target is None and "weight" not in self.model_fields_set:
            raise ValueError("give target, or weight, or both")
        if (self.context is None) is not (self.save == "keys"):
            raise ValueError(
                "context has no effect on keys; leave it out, or save memory or time"
                if self.save == "keys"
                else f"save {self.save} needs context, the number of tokens at which it is saved"
            )
        return self

    def described(self) -> str:
        """In words."""
        what = {"keys": "keys rejected", "memory": "cache saved", "time": "time of attention saved"}[self.save]
        wanted = what if self.target is None else f"{self.target:.0%} of the {what}"
        at = "" if self.context is None else f" at {self.context:,} tokens"
        return f"{wanted}{at}, at a price of {self.weight:g} nats"


class Softness(Section):
    """A schedule for screening's softness tau, the same for all heads; tau is then not learned."""

    start: NonNegativeFloat = Field(description="Softness at the first step.")
    end: NonNegativeFloat = Field(description="Softness at the last step and after it; 0 is a hard threshold.")
    schedule: Literal["linear", "geometric"] = Field(
        default="linear", description="linear: equal differences between steps. geometric: equal factors."
    )

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.schedule == "geometric" and 0 in (self.start, self.end):
            raise ValueError("schedule: geometric cannot start or end at 0; set linear")
        return self

    def described(self) -> str:
        """In words."""
        return f"softness from {self.start:g} to {self.end:g}"


class Bridge(Section):
    """A schedule for the exponent p of screening units, from softmax (1) to the unit (0), the same for all heads.

    p changes linearly with the steps. As it falls, softness approaches 1 - t, window edges become cosines, and gain and
    bound take effect. The guard is off, since the loss rises as softmax disappears.
    """

    start: Annotated[float, Field(ge=0, le=1)] = Field(
        default=1.0, description="p at the first step; 1 is the form gated."
    )
    end: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.0, description="p at the last step and after it; 0 is the unit."
    )

    def described(self) -> str:
        """In words."""
        return f"renormalisation from {self.start:g} to {self.end:g}"
