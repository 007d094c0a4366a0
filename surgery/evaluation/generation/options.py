"""What a suite can set of samples of generation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, PositiveInt

from surgery.evaluation.part import Length, TextPartOptions


class GenerationPart(TextPartOptions):
    """Samples of generation: each model continues the beginnings of some texts, always by the likeliest token."""

    kind: Literal["generation"]
    length: Length = Field(default=256, description="Tokens of each prompt.")
    documents: PositiveInt | None = Field(
        default=3, description="Largest number of prompts, of as many texts as possible; null takes all."
    )
    tokens: PositiveInt = Field(
        default=40, le=4096, description="Tokens that each model adds, unless it ends the text."
    )

    @property
    def longest(self) -> int:
        """Tokens of a prompt and its continuation."""
        return self.length + self.tokens

    def overrides(self, given: Mapping[str, int]) -> dict[str, Any]:
        """No more and no longer prompts than its own: a reader compares a few by eye."""
        return {name: min(value, getattr(self, name) or value) for name, value in given.items()}
