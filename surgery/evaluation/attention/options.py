"""What a suite can set of the statistics of attention."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, PositiveInt

from surgery.evaluation.part import Length, TextPartOptions


class AttentionPart(TextPartOptions):
    """Statistics of the attention weights by layer, head and n: the greatest weight, entropy, mass on first tokens."""

    kind: Literal["attention"]
    length: Length = Field(default=1024, description="Tokens per sequence.")
    documents: PositiveInt | None = Field(default=2, description="Largest number of sequences; null takes all.")
    first_tokens: PositiveInt = Field(default=4, description="Number of first tokens whose mass is summed.")
    block: PositiveInt = Field(default=64, description="Queries and keys in a block; shares of rejected blocks.")

    def overrides(self, given: Mapping[str, int]) -> dict[str, Any]:
        """The number of documents stays: these statistics need one document where a loss needs many."""
        return {**given, "documents": self.documents}
