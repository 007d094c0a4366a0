"""What a suite can set of retrieval."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from surgery.evaluation.part import CHUNK, Length, PartOptions, TextUse

DEFAULT_FACTS = 15  # of a haystack of task recall
Depth = Annotated[float, Field(ge=0, le=1)]


class RetrievalPart(PartOptions):
    """Retrieval by length and depth: does the model find a fact in the text?"""

    kind: Literal["retrieval"]
    task: Literal["abcdigits", "needle", "passkey", "induction", "recall"] = Field(
        description="Kind of prompt. recall: many facts in one text of yours, or in made-up sentences without --text; "
        "every fact is asked for."
    )
    lengths: list[Length] = Field(min_length=1, description="Tokens of prompt and answer.")
    depths: list[Depth] = Field(
        default=[0.0, 0.25, 0.5, 0.75, 1.0], min_length=1, description="Depth of the fact: 0 is the start of the text."
    )
    samples: PositiveInt = Field(
        default=4, description="Prompts for each length and depth; for task recall: haystacks for each length."
    )
    needles: PositiveInt | None = Field(
        default=None,
        description="For task needle: number of hidden needles; the model is asked for one. Default: 3. For task "
        "recall: number of facts in a haystack, spread evenly over the depths. Default: 15.",
    )
    seed: int = Field(default=0, ge=0, description="Seed of the random prompts.")
    chunk: int = CHUNK

    @property
    def texts(self) -> TextUse:
        """Only task recall reads texts."""
        return "optional" if self.task == "recall" else "none"

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt with its answer."""
        return max(self.lengths)

    def overrides(self, given: Mapping[str, int]) -> dict[str, Any]:
        """Haystacks of texts have one length in place of several; other prompts have no text."""
        return {"lengths": [given["length"]]} if self.task == "recall" and "length" in given else {}

    @model_validator(mode="after")
    def _needles_of_needle(self) -> Self:
        if self.needles is not None and self.task not in ("needle", "recall"):
            raise ValueError(f"needles has no effect with task {self.task}; it belongs to the tasks needle and recall")
        facts = self.needles or DEFAULT_FACTS
        if self.task == "recall" and facts < len(self.depths):
            raise ValueError(f"needles: {facts} facts cannot lie at {len(self.depths)} depths; set fewer depths")
        return self
