"""What the options of all measures have in common: each is a part of a suite."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, PositiveInt

TextUse: TypeAlias = Literal["none", "optional", "needed"]
Length = Annotated[int, Field(ge=2, le=2**24)]
CHUNK = Field(default=2048, ge=16, description="Tokens per forward pass; a longer sequence is run in chunks.")


class StrictModel(BaseModel):
    """Unknown keys and values of another type are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class PartOptions(StrictModel):
    """The options of one part of a suite; ``kind`` names its measure."""

    kind: str

    @property
    def texts(self) -> TextUse:
        """Whether the part reads the texts that are given."""
        return "none"

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence that the part may run."""
        return 2

    def overrides(self, given: Mapping[str, int]) -> dict[str, Any]:
        """New values of options where the user gives another ``length`` or number of ``documents``; here of none."""
        return {}


class TextPartOptions(PartOptions):
    """The options of a part that reads the texts."""

    length: Length = Field(default=4096, description="Tokens per sequence.")
    documents: PositiveInt | None = Field(
        default=8, description="Largest number of sequences, taken from as many texts as possible; null takes all."
    )
    chunk: int = CHUNK

    @property
    def texts(self) -> TextUse:
        """It measures on texts."""
        return "needed"

    @property
    def longest(self) -> int:
        """Tokens per sequence."""
        return self.length

    def overrides(self, given: Mapping[str, int]) -> dict[str, Any]:
        """Both have an option of the same name."""
        return dict(given)
