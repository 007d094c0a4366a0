"""The section ``data`` of a recipe: the text, its held-out part, and its sequences."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from surgery.data import AnySource, DataSource, LongDocuments, RecallSource, TextSource
from surgery.schemas.section import Section


class Data(Section):
    """The text: which files, which part is held out, how it is cut into sequences."""

    text: str | list[str] | None = Field(default=None, description="Text files, folders and globs.")
    sources: list[AnySource] = Field(
        default=[], description="Several sources of any kind, mixed by weight; in place of text."
    )
    separator: str | None = Field(
        default=None,
        min_length=1,
        description="Text that separates documents within a file; without it each file is one document.",
    )
    held_out: Annotated[float, Field(ge=0, lt=1)] | list[str] = Field(
        default=0.1, description="Share of the text, in whole documents, or the files to hold out."
    )
    sequence_length: Annotated[int, Field(ge=2)] = Field(default=1024, description="Tokens per sequence.")
    long_documents: LongDocuments = Field(
        default="cut",
        description="cut: a document longer than sequence_length becomes several documents. start: only its beginning "
        "is used. drop: it is left out.",
    )
    streaming: bool = Field(
        default=False,
        description="Read text during training instead of all at once. The hash of a document then decides whether it "
        "is held out, and documents are shuffled within windows.",
    )
    packing: bool = Field(
        default=True, description="Fill sequences with several documents; no document attends to another."
    )

    @property
    def patterns(self) -> list[str]:
        """``text`` as a list."""
        return [self.text] if isinstance(self.text, str) else list(self.text or [])

    @property
    def all_sources(self) -> list[tuple[str, DataSource]]:
        """Each source with the key that it has in the recipe."""
        if self.text is None:
            return [(f"data.sources.{number}", source) for number, source in enumerate(self.sources)]
        return [("data.text", TextSource(kind="text", path=self.text, separator=self.separator))]

    @model_validator(mode="after")
    def _text_or_sources(self) -> Self:
        if self.text is None and not self.sources:
            raise PydanticCustomError("missing_key", "missing", {"key": "text"})
        for number, source in enumerate(self.sources):
            if isinstance(source, RecallSource) and source.lengths[1] > self.sequence_length:
                raise ValueError(
                    f"sources.{number}.lengths: haystacks of {source.lengths[1]} tokens do not fit into sequences of "
                    f"{self.sequence_length}; set data.sequence_length or lengths"
                )
        if self.text is not None and self.sources:
            raise ValueError("give either text or sources")
        if self.sources and self.separator is not None:
            raise ValueError("separator has no effect beside sources; it belongs to a source of kind text")
        return self

    @field_validator("text", "held_out")
    @classmethod
    def _not_empty(cls, value: Any) -> Any:
        if value in ("", []) or (isinstance(value, list) and "" in value):
            raise ValueError("must name at least one file, folder or glob")
        return value
