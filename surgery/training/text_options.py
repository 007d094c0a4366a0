"""The ``data`` section of a recipe: which text, which part is held out, how it is cut into sequences."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from surgery.data import AnySource, DataSource, LongDocuments, TextSource
from surgery.schemas.section import Section


class Data(Section):
    """The text: which files, which part is held out, how it is cut into sequences."""

    text: str | list[str] | None = Field(default=None, description="Text files, folders and globs.")
    sources: list[AnySource] = Field(
        default=[], description="In place of text: several sources, of any kind, mixed by weight."
    )
    separator: str | None = Field(
        default=None,
        min_length=1,
        description="Text between documents of one file; without it each file is one document.",
    )
    held_out: Annotated[float, Field(ge=0, lt=1)] | list[str] = Field(
        default=0.1, description="Share of the text, in whole documents, or the files to hold out."
    )
    sequence_length: Annotated[int, Field(ge=2)] = Field(default=1024, description="Tokens per sequence.")
    long_documents: LongDocuments = Field(
        default="cut",
        description="Documents above sequence_length are cut into pieces, each read as a document of its own; or only "
        "their start is used; or they drop out.",
    )
    streaming: bool = Field(
        default=False,
        description="Read as training needs it instead of all at once. Held out is then each document whose hash falls "
        "into the share, and order is mixed within windows.",
    )
    packing: bool = Field(
        default=True, description="Fill sequences with several documents, which do not see each other."
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
        if self.text is not None and self.sources:
            raise ValueError("give either text or sources")
        if self.sources and self.separator is not None:
            raise ValueError("separator does nothing beside sources; it belongs to a source of kind text")
        return self

    @field_validator("text", "held_out")
    @classmethod
    def _not_empty(cls, value: Any) -> Any:
        if value in ("", []) or (isinstance(value, list) and "" in value):
            raise ValueError("must name at least one file, folder or glob")
        return value
