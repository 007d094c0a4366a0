"""Text as rows to train on and rows to measure on."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from surgery.data import (
    Document,
    Row,
    SourceReader,
    exclude_documents,
    hold_out,
    make_rows,
    read_documents,
    split_documents,
)
from surgery.data.documents import text_hash
from surgery.data.held_out import is_held_out
from surgery.data.offsets import Offsets
from surgery.data.recall import encode_haystack
from surgery.data.stream import Mixture, RowStream, StreamSnapshot, TokenizedDocument
from surgery.errors import UsageError
from surgery.training.text_options import Data

Encode = Callable[[list[str]], list[list[int]]]
# Token ids of a conversation, and flags for the answers; the name is for errors.
EncodeChat = Callable[[Sequence[Mapping[str, str]], str], tuple[list[int], list[bool]]]
OpenStream = Callable[[int, int, StreamSnapshot | None], RowStream]
OnDocuments = Callable[[str, int, int | None], None]
_AT_ONCE = 64
# While looking for held-out documents in a stream, the most documents read for each one wanted.
_PATIENCE = 50


@dataclass(frozen=True)
class TrainingData:
    """Rows and where they come from. ``fingerprint`` changes with any token or its place.

    Attributes:
        by_length: training rows of each source for each length that a stage asks for; of a stream, its first ones.
        length: the recipe's own. What is held out is measured at that one throughout.
        held_out: rows to measure on.
        train_documents: number of training documents, 0 if it is unknown.
        held_out_documents: number of held-out documents.
        dropped_documents: left out since they are also held out.
        fingerprint: hash of all rows.
        held_out_share: the characters of the held-out documents, of all; None where it is not known.
        weights: of the sources.
        stream: opens the rows of a stream, for a length and a seed, at a snapshot.
    """

    by_length: Mapping[int, tuple[tuple[Row, ...], ...]]
    length: int
    held_out: tuple[Row, ...]
    train_documents: int
    held_out_documents: int
    dropped_documents: int
    fingerprint: str
    held_out_share: float | None = None
    weights: tuple[float, ...] = (1.0,)
    stream: OpenStream | None = None

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


def read_data(
    options: Data,
    encode: Encode,
    chat: EncodeChat | None = None,
    offsets: Offsets | None = None,
    *,
    lengths: Iterable[int] = (),
    seed: int = 0,
    held_out_rows: int = 64,
    on_documents: OnDocuments | None = None,
) -> TrainingData:
    """Read, split, tokenize and pack text.

    Args:
        options: which text.
        encode: token ids of each text.
        chat: of a conversation.
        offsets: of a text, with the characters of each token; haystacks need it.
        lengths: tokens of a row, beside ``options.sequence_length``: one for each stage.
        seed: of the split and of the order.
        held_out_rows: at most this many held-out rows.
        on_documents: called with what is done ("reading" or "tokenizing"), the number of documents that are done, and
            the number of all, if known.

    Raises:
        UsageError: no text, or too little to train on or to hold out.
    """
    say = on_documents or (lambda what, done, total: None)
    reading = _Reading(options, encode, chat, offsets, lengths, seed, held_out_rows, say)
    return reading.streamed() if options.streaming else reading.whole()


class _Reading:
    def __init__(
        self,
        data: Data,
        encode: Encode,
        chat: EncodeChat | None,
        offsets: Offsets | None,
        lengths: Iterable[int],
        seed: int,
        held_out_rows: int,
        on_documents: OnDocuments,
    ) -> None:
        self.data, self.encode, self.chat, self.offsets = data, encode, chat, offsets
        self.on_documents = on_documents
        self.seed, self.held_out_rows = seed, held_out_rows
        self.lengths = dict.fromkeys([data.sequence_length, *lengths])
        named = self.data.all_sources
        self.weights = tuple(source.weight for _, source in named)
        self.readers = [
            SourceReader(source, number, key, stream=self.data.streaming) for number, (key, source) in enumerate(named)
        ]

    def whole(self) -> TrainingData:
        """Read all text at once."""
        data = self.data
        documents: list[Document] = []
        for reader in self.readers:
            for document, _ in reader.documents():
                documents.append(document)
                self.on_documents("reading", len(documents), None)
        if not documents:
            raise UsageError(f"{self.readers[0].key} has no text", hint="Give more text.")
        dropped = 0
        held: list[Document] = []
        if isinstance(data.held_out, list):
            held = self._named_held_out(data.held_out)
            kept = exclude_documents(documents, held)
            dropped, documents = len(documents) - len(kept), kept
        elif data.held_out > 0:
            documents, held = hold_out(documents, data.held_out, self.seed)
        tokens = [self._tokens([document for document in documents if document.source == n]) for n in self._numbers()]
        by_length = {length: tuple(tuple(self._rows(part, length)) for part in tokens) for length in self.lengths}
        for length, sources in by_length.items():
            for reader, rows in zip(self.readers, sources, strict=True):
                if not rows:
                    raise self._nothing(reader.key, length, dropped)
        held_rows = self._held_rows(held)
        return TrainingData(
            by_length=by_length,
            length=data.sequence_length,
            held_out=held_rows,
            train_documents=len(documents),
            held_out_documents=len(held),
            dropped_documents=dropped,
            fingerprint=_fingerprint([*by_length[data.sequence_length], held_rows]),
            held_out_share=_characters(held) / (_characters(held) + _characters(documents)),
            weights=self.weights,
        )

    def streamed(self) -> TrainingData:
        """The held-out part, the beginning, and how to read on."""
        data = self.data
        if isinstance(data.held_out, list):
            held = self._named_held_out(data.held_out)
            known = {text_hash(document) for document in held}

            def wanted(document: Document) -> bool:
                return text_hash(document) not in known

        else:
            share = data.held_out
            held = self._hashed_held_out(share) if share else []

            def wanted(document: Document) -> bool:
                return not is_held_out(document, share, self.seed)

        def open_stream(length: int, seed: int, snapshot: StreamSnapshot | None) -> RowStream:
            mixture = Mixture(self.readers, self.weights, wanted)
            return RowStream(
                mixture,
                lambda document: self._tokens([document])[0],
                lambda tokens: self._rows(tokens, length),
                length=length,
                seed=seed,
                snapshot=snapshot,
            )

        first = {length: open_stream(length, self.seed, None).window() for length in self.lengths}
        held_rows = self._held_rows(held)
        identity = json.dumps([reader.identity() for reader in self.readers], sort_keys=True)
        return TrainingData(
            by_length={length: (tuple(rows),) for length, rows in first.items()},
            length=data.sequence_length,
            held_out=held_rows,
            train_documents=0,
            held_out_documents=len(held),
            dropped_documents=0,
            fingerprint=_fingerprint([first[data.sequence_length], held_rows], identity),
            stream=open_stream,
        )

    # ------------------------------------------------------------------------------------------------ held out

    def _named_held_out(self, patterns: Sequence[str]) -> list[Document]:
        try:
            return split_documents(read_documents(patterns), self.data.separator)
        except UsageError as error:
            hint = 'Files, folders or globs, relative to the current folder: --set "data.held_out=[texts/a.txt]".'
            raise UsageError(f"data.held_out: {error.message}", hint=hint) from error

    def _hashed_held_out(self, share: float) -> list[Document]:
        """From the beginning of each source: as much as ``evaluation.sequences`` asks for."""
        held: list[Document] = []
        wanted = self.held_out_rows
        for reader in self.readers:
            most = int(wanted / share) * _PATIENCE
            found = (document for document, _ in islice(reader.documents(), most))
            mine = (document for document in found if is_held_out(document, share, self.seed))
            # A document may fill a row; rows beyond the needed number are removed below.
            held += islice(mine, max(1, wanted // len(self.readers)))
        if not held:
            raise UsageError(
                f"data.held_out {share:g}: none of the documents that were read falls into this share",
                hint="Set data.streaming to false, which splits all documents; or hold out a larger share, or files.",
            )
        return held

    def _held_rows(self, held: Sequence[Document]) -> tuple[Row, ...]:
        rows = self._rows(self._tokens(held), self.data.sequence_length)
        if held and not rows:
            raise UsageError("data.held_out has no document with two tokens to predict", hint="Hold out more text.")
        # A sample rather than the beginning: best-fit packing puts the longest first.
        random.Random(self.seed).shuffle(rows)
        return tuple(rows[: self.held_out_rows])

    # ------------------------------------------------------------------------------------------------- tokens

    def _numbers(self) -> range:
        return range(len(self.readers))

    def _tokens(self, documents: Sequence[Document]) -> list[TokenizedDocument]:
        encoded: list[TokenizedDocument] = []
        for start in range(0, len(documents), _AT_ONCE):
            some = documents[start : start + _AT_ONCE]
            plain = [document.text for document in some if document.messages is None and document.haystack is None]
            texts = iter(self.encode(plain) if plain else [])
            for document in some:
                if document.haystack is not None:
                    if self.offsets is None:
                        raise UsageError("kind: recall needs a tokenizer that knows the characters of each token")
                    encoded.append(encode_haystack(document.haystack, self.offsets))
                elif document.messages is None:
                    encoded.append((next(texts), None))
                elif self.chat is None:
                    raise UsageError("format: chat needs a tokenizer with a chat template")
                else:
                    encoded.append(self.chat(document.messages, document.name))
            if len(documents) > 1:  # a stream reads one after the other, while it trains
                self.on_documents("tokenizing", len(encoded), len(documents))
        return encoded

    def _rows(self, tokens: Sequence[TokenizedDocument], length: int) -> list[Row]:
        return make_rows(
            [ids for ids, _ in tokens],
            length,
            packing=self.data.packing,
            long=self.data.long_documents,
            predicted=[flags for _, flags in tokens],
        )

    def _nothing(self, key: str, length: int, dropped: int) -> UsageError:
        why = "no document has two tokens"
        if self.data.long_documents == "drop":
            why += f" and fits into {length}"
        return UsageError(
            f"{key} leaves nothing to train on: {why}"
            + (f" once {dropped} held-out ones are left out" if dropped else ""),
            hint="Give more text.",
        )


def _characters(documents: Iterable[Document]) -> int:
    return sum(len(document.text) for document in documents)


def _fingerprint(parts: Sequence[Sequence[Row]], *more: Any) -> str:
    digest = hashlib.sha256()
    for rows in parts:
        for row in rows:
            digest.update(repr((row.documents, row.predicted)).encode())
        digest.update(b"|")
    for item in more:
        digest.update(str(item).encode())
    return digest.hexdigest()
