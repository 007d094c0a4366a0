"""The sizes of a Multiscreen model."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from surgery.models.base import ArchitectureOptions


class MultiscreenOptions(ArchitectureOptions):
    """One number, psi, sets layers, heads and width."""

    psi: Annotated[int, Field(ge=1, le=256)] = Field(
        default=8, description="Number of layers and of heads per layer; the width is its square."
    )
    variant: Literal["v1", "v3"] = Field(
        default="v3",
        description="Version of the paper whose acceptance width is learned: v1 1/(exp(x) + 1), v3 sigmoid(x).",
    )
