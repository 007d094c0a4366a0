"""What a suite can set of the loss."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from surgery.errors import UsageError
from surgery.evaluation.loss.buckets import check_edges
from surgery.evaluation.part import Length, TextPartOptions


class LossPart(TextPartOptions):
    """Loss of each next token by the number of tokens seen, on long documents."""

    kind: Literal["loss"]
    buckets: list[PositiveInt] | None = Field(
        default=None, description="Most tokens seen in each bucket, rising; powers of two from 64 by default."
    )

    @model_validator(mode="after")
    def _rising(self) -> Self:
        if self.buckets is not None:
            try:
                check_edges(self.buckets, self.length)
            except UsageError as error:
                raise ValueError(error.message) from error
        return self


class SlidingPart(TextPartOptions):
    """Perplexity by a window that slides over whole documents: each token is predicted from about a full window."""

    kind: Literal["sliding"]
    length: Length = Field(default=1024, description="Tokens of the window.")
    documents: PositiveInt | None = Field(default=4, description="Largest number of texts; null takes all.")
    stride: PositiveInt = Field(default=512, description="Tokens by which the window moves on.")
    tokens: PositiveInt = Field(default=4096, description="Most tokens of one text.")

    @model_validator(mode="after")
    def _overlapping(self) -> Self:
        if self.stride >= self.length:
            raise ValueError(f"stride {self.stride} must be below length {self.length}, or tokens are left out")
        return self

    def overrides(self, given: Mapping[str, int]) -> dict[str, Any]:
        """A shorter window has a shorter stride."""
        own: dict[str, Any] = dict(given)
        if "length" in own:
            own["stride"] = min(self.stride, max(1, own["length"] // 2))
        return own
