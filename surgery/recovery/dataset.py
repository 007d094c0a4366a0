"""The recipe's text as rows to train on and rows to measure on."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from surgery.data import Document, Row, hold_out, make_rows, read_documents, split_documents, without
from surgery.errors import UsageError
from surgery.recovery.recipe import Recipe

Encode = Callable[[list[str]], list[list[int]]]
_AT_ONCE = 64


@dataclass(frozen=True)
class TrainingData:
    """Rows and where they come from. ``fingerprint`` changes with any token or its place.

    ``by_length`` has the training rows of each source for each length that a stage asks for, ``length`` being the
    recipe's own. What is held out is measured at that one throughout.
    """

    by_length: Mapping[int, tuple[tuple[Row, ...], ...]]
    length: int
    held_out: tuple[Row, ...]
    train_documents: int
    held_out_documents: int
    dropped_documents: int
    fingerprint: str
    weights: tuple[float, ...] = (1.0,)

    @property
    def train(self) -> tuple[Row, ...]:
        """Training rows at the recipe's own length."""
        return tuple(row for source in self.by_length[self.length] for row in source)

    def rows(self, length: int) -> tuple[tuple[Row, ...], ...]:
        """Training rows of each source at a stage's length."""
        return self.by_length[length]

    @property
    def train_tokens(self) -> int:
        """Tokens of one pass over the training rows."""
        return sum(row.tokens for row in self.train)

    @property
    def held_out_tokens(self) -> int:
        """Tokens of the held-out rows."""
        return sum(row.tokens for row in self.held_out)


def read_data(recipe: Recipe, encode: Encode) -> TrainingData:
    """Read, split, tokenize and pack the text of a recipe.

    Args:
        recipe: its ``data``, ``seed`` and ``evaluation.sequences`` are used.
        encode: token ids of each text.

    Raises:
        UsageError: no text, or too little to train on or to hold out.
    """
    data = recipe.data
    documents = split_documents(_documents("data.text", data.patterns), data.separator)
    dropped = 0
    held: list[Document] = []
    if isinstance(data.held_out, list):
        held = split_documents(_documents("data.held_out", data.held_out), data.separator)
        kept = without(documents, held)
        dropped, documents = len(documents) - len(kept), kept
    elif data.held_out > 0:
        documents, held = hold_out(documents, data.held_out, recipe.seed)
    tokens = _tokens(documents, encode)
    lengths = dict.fromkeys([data.sequence_length, *(stage.data.sequence_length for stage in recipe.stage_recipes())])
    by_length = {length: (tuple(make_rows(tokens, length, packing=data.packing)),) for length in lengths}
    train = by_length[data.sequence_length][0]
    held_rows = make_rows(_tokens(held, encode), data.sequence_length, packing=data.packing)
    if not train:
        raise UsageError(
            "data.text leaves nothing to train on: no document has two tokens"
            + (f" once {dropped} that are also held out are left out." if dropped else "."),
            hint="Give more text.",
        )
    if held and not held_rows:
        raise UsageError("data.held_out has no document of two tokens.", hint="Hold out more text.")
    # A sample rather than the beginning: best-fit packing puts the longest first.
    random.Random(recipe.seed).shuffle(held_rows)
    held_rows = held_rows[: recipe.evaluation.sequences]
    return TrainingData(
        by_length,
        data.sequence_length,
        tuple(held_rows),
        len(documents),
        len(held),
        dropped,
        _fingerprint(train, held_rows),
    )


def _documents(key: str, patterns: Sequence[str]) -> list[Document]:
    try:
        return read_documents(patterns)
    except UsageError as error:
        hint = f'Files, folders or globs, relative to the current folder: --set "{key}=docs/**/*.md".'
        raise UsageError(f"{key}: {error.message}", hint=hint) from error


def _tokens(documents: Sequence[Document], encode: Encode) -> list[list[int]]:
    encoded: list[list[int]] = []
    for start in range(0, len(documents), _AT_ONCE):
        encoded += encode([document.text for document in documents[start : start + _AT_ONCE]])
    return encoded


def _fingerprint(*parts: Sequence[Row]) -> str:
    digest = hashlib.sha256()
    for rows in parts:
        for row in rows:
            digest.update(repr(row.documents).encode())
        digest.update(b"|")
    return digest.hexdigest()
