"""The sections of a recipe that belong to screening: a share of rejected keys, and scheduled parameters."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeFloat, PositiveFloat, model_validator

from surgery.schemas.section import Section


class Sparsity(Section):
    """Screening is to reject keys: a price, beside the objective, on those that it accepts.

    What is counted are all keys of all heads, in the layers whose thresholds are trained. The count is exact; its
    gradient is that of a soft count, which keys that are just rejected or just accepted move most.
    """

    target: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        default=None,
        description="Share of the keys to reject. The price is paid below it alone; without it, always.",
    )
    weight: PositiveFloat = Field(
        default=1.0, description="The price: so many nats per token is it worth to reject all keys rather than none."
    )

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
    """Screening's softness tau over the steps, the same for all heads, in place of learning it."""

    start: NonNegativeFloat = Field(description="At the first step.")
    end: NonNegativeFloat = Field(description="At the last step, and after it; 0 is hard.")
    schedule: Literal["linear", "geometric"] = Field(
        default="linear", description="How it goes from one to the other: equal steps, or equal factors."
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
    """Screening of form ``unit``: its exponent p over the steps, from softmax (1) to the unit (0), for all heads.

    softness goes towards 1 - t, window edges become cosines, and gain and bound come in, as p goes. It is linear in the
    steps. The guard does not watch meanwhile: the loss rises as softmax goes.
    """

    start: Annotated[float, Field(ge=0, le=1)] = Field(default=1.0, description="At the first step; 1 is gated.")
    end: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.0, description="At the last step, and after it; 0 is the unit."
    )

    def described(self) -> str:
        """In words."""
        return f"renormalisation from {self.start:g} to {self.end:g}"
