"""Data sources: text files, JSONL, Parquet and hub data sets, each read in a fixed order from any position.

``datasets`` reads JSONL, Parquet and hub data sets: local files always as a stream (nothing is copied into a cache),
hub data sets as a stream or after one download.
"""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveFloat, PositiveInt, field_validator

from surgery.data.documents import Document, match_files, read_documents, split_documents
from surgery.data.recall import TRAINING, FactFamily, Haystack, TrainingFamily, draw_haystack
from surgery.errors import NoTextError, UsageError

Position = dict[str, Any]


class _Options(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    weight: PositiveFloat = Field(
        default=1.0,
        description="Share of the tokens, relative to the weights of the other sources. A small source is repeated.",
    )


class _Files(_Options):
    path: str | list[str] = Field(description="Files, folders and globs.")

    @field_validator("path")
    @classmethod
    def _not_empty(cls, value: Any) -> Any:
        if value in ("", []) or (isinstance(value, list) and "" in value):
            raise ValueError("must name at least one file, folder or glob")
        return value

    @property
    def patterns(self) -> list[str]:
        """``path`` as a list."""
        return [self.path] if isinstance(self.path, str) else list(self.path)


class _Records(_Options):
    field: str | None = Field(
        default=None,
        min_length=1,
        description="Column with the text or the messages; default: text, or messages with format: chat.",
    )
    format: Literal["text", "chat"] = Field(
        default="text",
        description="text: plain text. chat: a list of messages with role and content, formatted by the tokenizer's "
        "chat template; only the assistant's answers count in the loss.",
    )

    @property
    def column(self) -> str:
        """``field`` or its default."""
        return self.field or ("messages" if self.format == "chat" else "text")


class TextSource(_Files):
    """Text files; each is one document, or several with a separator between them."""

    kind: Literal["text"]
    separator: str | None = Field(default=None, min_length=1, description="Text between the documents of a file.")


class RecallSource(_Files):
    """Questions about facts that are hidden in text files; only the answers count in the loss.

    Each document gives haystacks: a part of it, facts between its paragraphs, then the questions in random order.
    """

    kind: Literal["recall"]
    separator: str | None = Field(default=None, min_length=1, description="Text between the documents of a file.")
    lengths: list[Annotated[int, Field(ge=128)]] = Field(
        default=[512, 1024],
        min_length=2,
        max_length=2,
        description="Least and greatest tokens of a haystack with its questions; the logarithm is drawn evenly.",
    )
    facts: list[PositiveInt] = Field(
        default=[4, 12],
        min_length=2,
        max_length=2,
        description="Least and greatest number of facts; a short haystack has no more than fit.",
    )
    families: list[TrainingFamily] | None = Field(
        default=None, min_length=1, description="Kinds of facts; null takes all."
    )
    haystacks: PositiveInt = Field(default=1, description="Haystacks for each document in one pass over the texts.")
    seed: NonNegativeInt = Field(default=0, description="Seed of the facts, their places, and the lengths.")

    @field_validator("lengths", "facts")
    @classmethod
    def _in_order(cls, value: list[int]) -> list[int]:
        if value[0] > value[1]:
            raise ValueError(f"the least, {value[0]}, is above the greatest, {value[1]}")
        return value

    def draw(self, text: str, where: str) -> Haystack:
        """A haystack from a text; ``where`` tells its place from others'."""
        families: dict[str, FactFamily] = {name: TRAINING[name] for name in self.families or TRAINING}
        return draw_haystack(text, families, self.lengths, self.facts, random.Random(f"{self.seed}/{where}"))


class JsonlSource(_Files, _Records):
    """JSON lines files, one record on each line."""

    kind: Literal["jsonl"]


class ParquetSource(_Files, _Records):
    """Parquet files, one record in each row."""

    kind: Literal["parquet"]


class HubSource(_Records):
    """A data set on the Hugging Face hub."""

    kind: Literal["hub"]
    id: str = Field(min_length=1, description="Hub id: user/name.")
    config: str | None = Field(default=None, description="Configuration of the data set, if it has several.")
    split: str = Field(default="train", min_length=1, description="Split of the data set.")
    revision: str | None = Field(default=None, description="Branch, tag or commit of the data set.")


DataSource = TextSource | RecallSource | JsonlSource | ParquetSource | HubSource


class SourceReader:
    """Reads the documents of one source, in a fixed order.

    Args:
        source: its options.
        number: of the source; each document carries it.
        key: of the source in the recipe, for error messages.
        stream: stream a hub data set instead of downloading it first.
    """

    def __init__(self, source: DataSource, number: int, key: str, *, stream: bool) -> None:
        self.source, self.number, self.key, self._stream = source, number, key, stream
        self._files = [] if isinstance(source, HubSource) else _find(source.patterns, key)

    def identity(self) -> dict[str, Any]:
        """What identifies the source: its options, and the names and sizes of its files."""
        files = [[path.as_posix(), path.stat().st_size] for path in self._files]
        return {"options": self.source.model_dump(mode="json"), "files": files}

    def documents(self, position: Position | None = None) -> Iterator[tuple[Document, Position]]:
        """Each document with the position after it.

        Args:
            position: where to continue; None starts at the beginning.

        Raises:
            UsageError: a file or a data set cannot be read, or a record has no text.
        """
        if isinstance(self.source, TextSource | RecallSource):
            yield from self._texts(self.source, position or {"file": 0, "piece": 0})
            return
        with _clear_errors(self.key):
            records = self._records(self.source)
        if position is not None:
            records.load_state_dict(position["state"])
        row = position["row"] if position is not None else 0
        iterator = iter(records)
        while True:
            with _clear_errors(self.key):
                record = next(iterator, None)
            if record is None:
                return
            row += 1
            document = self._document(record, row)
            if document is not None:
                yield document, {"state": records.state_dict(), "row": row}

    def _texts(self, source: TextSource | RecallSource, position: Position) -> Iterator[tuple[Document, Position]]:
        each = source.haystacks if isinstance(source, RecallSource) else 1
        for number in range(position["file"], len(self._files)):
            try:
                found = read_documents([self._files[number]])
            except NoTextError:
                continue
            except UsageError as error:
                raise UsageError(f"{self.key}: {error.message}", hint=error.hint) from error
            pieces = split_documents(found, source.separator)
            # Of a recall source, a piece is a haystack.
            for piece in range(position["piece"] if number == position["file"] else 0, each * len(pieces)):
                document = pieces[piece // each]
                haystack = source.draw(document.text, f"{number}/{piece}") if isinstance(source, RecallSource) else None
                found_here = Document(document.name, document.text, self.number, haystack=haystack)
                yield found_here, {"file": number, "piece": piece + 1}

    def _records(self, source: JsonlSource | ParquetSource | HubSource) -> Any:
        import datasets

        # The library logs an error before it raises it; the user sees it once.
        logging.getLogger("datasets").setLevel(logging.CRITICAL)
        if isinstance(source, HubSource):
            found = datasets.load_dataset(
                source.id, source.config, split=source.split, revision=source.revision, streaming=self._stream
            )
            return found if self._stream else found.to_iterable_dataset()
        builder = "json" if isinstance(source, JsonlSource) else "parquet"
        files = [str(path) for path in self._files]
        return datasets.load_dataset(builder, data_files=files, split="train", streaming=True)

    def _document(self, record: Mapping[str, Any], row: int) -> Document | None:
        source: Any = self.source
        where = f"{self.key}: record {row}"
        if source.column not in record:
            raise UsageError(
                f"{where} has no field {source.column!r}",
                hint=f"Its fields are: {', '.join(map(str, record)) or 'none'}.",
            )
        value = record[source.column]
        if source.format == "chat":
            messages = _messages(value, where, source.column)
            text = json.dumps(messages, ensure_ascii=False)
            return Document(f"{self.key}#{row}", text, self.number, tuple(messages)) if messages else None
        if value is None:
            return None
        if not isinstance(value, str):
            raise UsageError(
                f"{where}: {source.column!r} is {type(value).__name__}, not text",
                hint="Set field to the column with the text, or set format to chat for messages.",
            )
        return Document(f"{self.key}#{row}", value, self.number) if value.strip() else None


def _messages(value: Any, where: str, column: str) -> list[dict[str, str]]:
    fits = isinstance(value, Sequence) and not isinstance(value, str)
    messages = list(value) if fits else []
    if not fits or not all(
        isinstance(item, Mapping) and isinstance(item.get("role"), str) and isinstance(item.get("content"), str)
        for item in messages
    ):
        raise UsageError(
            f"{where}: {column!r} is no list of messages, each with a role and a content",
            hint='Write messages as [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}].',
        )
    return [{"role": item["role"], "content": item["content"]} for item in messages]


def _find(patterns: Sequence[str], key: str) -> list[Path]:
    """The files that match the patterns, each once, sorted by name."""
    found: dict[Path, None] = {}
    for pattern in patterns:
        matches = match_files(pattern)
        if not matches:
            raise UsageError(
                f"{key}: no file matches {pattern!r}",
                hint="Give files, folders or globs, relative to the current folder.",
            )
        found.update(dict.fromkeys(matches))
    return sorted(found)


@contextmanager
def _clear_errors(key: str) -> Iterator[None]:
    """Re-raise errors of ``datasets`` as a UsageError: the first line of the message, and what to do."""
    try:
        yield
    except (OSError, ValueError, RuntimeError, KeyError, ImportError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        hint = "Check the file, its format and its field."
        if isinstance(error, ConnectionError) or "offline" in str(error).lower():
            hint = (
                "The hub cannot be reached, or HF_HUB_OFFLINE is set. Download the data set once while online, or give "
                "local files (kind: parquet or jsonl)."
            )
        elif type(error).__name__ in ("DatasetNotFoundError", "DataFilesNotFoundError"):
            hint = "Check the id. A private or gated data set needs HF_TOKEN."
        raise UsageError(f"{key}: {first}", hint=hint) from error


AnySource = Annotated[DataSource, Field(discriminator="kind")]
