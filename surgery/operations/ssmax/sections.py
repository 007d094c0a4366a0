"""The section of a recipe that belongs to SSMax: a penalty on multipliers that leave 1."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, PositiveFloat

from surgery.schemas.section import Section


class Identity(Section):
    """A penalty that keeps the multipliers m(n) near 1, so that a head that gains nothing stays as it is."""

    weight: PositiveFloat = Field(
        default=0.1, description="Penalty in nats per predicted token where the mean of (m(n) - 1)² is 1."
    )
    lengths: list[Annotated[int, Field(ge=1)]] = Field(
        default=[256, 1024, 4096], min_length=1, description="The n at which m(n) is compared with 1."
    )

    def described(self) -> str:
        """In words."""
        return f"{self.weight:g} nats times the mean of (m(n) - 1)² at n = {', '.join(map(str, self.lengths))}"
