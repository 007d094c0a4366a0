"""The sections of a recipe that belong to screening: a share of rejected keys, and scheduled parameters."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeFloat, PositiveFloat, model_validator

from surgery.schemas.section import Section


class Sparsity(Section):
    """A price on accepted keys, added to the objective, so that screening rejects more of them.

    All keys of all heads count, in the layers whose thresholds are trained. The count is exact. Its gradient is that of
    a soft count, in which keys close to the threshold weigh most.
    """

    target: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        default=None,
        description="Share of keys to reject. The price is paid only below it; without a target it is always paid.",
    )
    weight: PositiveFloat = Field(default=1.0, description="Penalty in nats per token when no key is rejected.")

    @model_validator(mode="after")
    def _asks_for_something(self) -> Self:
        if self.target is None and "weight" not in self.model_fields_set:
            raise ValueError("give target, or weight, or both")
        return self

    def described(self) -> str:
        """In words."""
        wanted = "keys rejected" if self.target is None else f"{self.target:.0%} of the keys rejected"
        return f"{wanted}, at a price of {self.weight:g} nats"


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
