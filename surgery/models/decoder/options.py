"""The sizes of a Llama-like decoder."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, PositiveFloat, PositiveInt

from surgery.flag import Flag
from surgery.models.base import ArchitectureOptions

_MULTIPLE = 32


class DecoderOptions(ArchitectureOptions):
    """A decoder with rotary positions, RMS norms and SwiGLU layers."""

    layers: PositiveInt = Field(default=6, description="Number of layers.")
    heads: PositiveInt = Field(default=6, description="Attention heads per layer.")
    width: PositiveInt = Field(default=384, description="Width of the hidden states; a multiple of twice the heads.")
    mlp_width: Annotated[PositiveInt | None, Flag(absent="8/3 of the width, rounded up to a multiple of 32")] = Field(
        default=None, description="Width inside each MLP."
    )
    theta: PositiveFloat = Field(default=10_000.0, description="Base of the rotary positions.")
    untied: bool = Field(default=False, description="Give the head weights of its own instead of the embedding's.")

    @property
    def inner_width(self) -> int:
        """``mlp_width`` or its default."""
        return self.mlp_width or -(-8 * self.width // (3 * _MULTIPLE)) * _MULTIPLE
