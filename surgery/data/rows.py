"""Cutting documents into sequences for training, and putting several short ones into one sequence.

A packed sequence behaves as its documents would alone: positions restart with each document, and transformers builds
the mask from positions that restart (as long as it gets neither a 2-D mask nor a cache), so attention and n restart
too. No label crosses a border. Padding is one more document, at the end, without labels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from surgery.data.documents import Document
from surgery.errors import UsageError

if TYPE_CHECKING:
    import torch

IGNORED = -100
LongDocuments = Literal["cut", "start", "drop"]
# Token ids, number of the document, which tokens count in the loss.
_Piece = tuple[tuple[int, ...], int, tuple[bool, ...] | None]


@dataclass(frozen=True)
class Row:
    """One sequence: its documents' tokens, each document separate.

    Attributes:
        documents: token ids of each document, or of each piece of one.
        origins: number of the document that each of them comes from; empty where nobody asks.
        predicted: for each of them which tokens count in the loss, None for all; empty for all of all. The first
            token of a document never counts: nothing predicts it.
    """

    documents: tuple[tuple[int, ...], ...]
    origins: tuple[int, ...] = ()
    predicted: tuple[tuple[bool, ...] | None, ...] = ()

    @property
    def tokens(self) -> int:
        """Number of tokens, padding not counted."""
        return sum(map(len, self.documents))

    @property
    def targets(self) -> int:
        """Number of tokens that are predicted."""
        return sum(sum(flags[1:]) for flags in self.flags())

    def flags(self) -> list[tuple[bool, ...]]:
        """``predicted``, written out."""
        given = self.predicted or (None,) * len(self.documents)
        return [
            (True,) * len(document) if flags is None else flags
            for document, flags in zip(self.documents, given, strict=True)
        ]


def split_documents(documents: Sequence[Document], separator: str | None) -> list[Document]:
    """Cut files into documents at a separator, which belongs to neither side; empty pieces are dropped."""
    if separator is None:
        return list(documents)
    return [
        Document(f"{document.name}#{number}", piece, document.source)
        for document in documents
        for number, piece in enumerate(document.text.split(separator))
        if piece.strip()
    ]


def hold_out(documents: Sequence[Document], share: float, seed: int) -> tuple[list[Document], list[Document]]:
    """Split into training and held-out documents, such that no text is on both sides.

    Documents with the same text (white space aside) stay together. The order in which groups are held out depends on
    the seed and the text alone, so adding files elsewhere leaves most of the split as it was.

    Args:
        documents: whole documents.
        share: of all characters, to hold out; at least one document is held out, and one kept. Documents are held
            out whole, each that brings the part nearer to the share, so few long ones can miss it.
        seed: of the order.

    Raises:
        UsageError: fewer than two different documents.
    """
    groups: dict[str, list[Document]] = {}
    for document in documents:
        groups.setdefault(fingerprint(document), []).append(document)
    if len(groups) < 2:
        raise UsageError(
            f"data.held_out {share:g} needs at least two different documents, the text has {len(groups)}.",
            hint="Give more files, a data.separator between documents, other files as data.held_out, or "
            "data.held_out: 0.",
        )
    order = sorted(groups, key=lambda key: hashlib.sha256(f"{seed}:{key}".encode()).digest())
    wanted = share * sum(len(document.text) for document in documents)
    sizes = {key: sum(len(document.text) for document in group) for key, group in groups.items()}
    held: set[str] = set()
    size = 0
    for key in order:
        nearer = abs(size + sizes[key] - wanted) < abs(size - wanted)
        if nearer and len(held) < len(order) - 1:
            held.add(key)
            size += sizes[key]
    held = held or {min(order, key=sizes.__getitem__)}
    train = [document for document in documents if fingerprint(document) not in held]
    return train, [document for document in documents if fingerprint(document) in held]


def without(documents: Sequence[Document], held_out: Sequence[Document]) -> list[Document]:
    """The documents whose text is not among those held out."""
    held = {fingerprint(document) for document in held_out}
    return [document for document in documents if fingerprint(document) not in held]


def make_rows(
    documents: Iterable[Sequence[int]],
    length: int,
    *,
    packing: bool,
    long: LongDocuments = "cut",
    predicted: Sequence[Sequence[bool] | None] | None = None,
    first: int = 0,
) -> list[Row]:
    """Cut tokenized documents into pieces of at most ``length`` and, with packing, fill rows with several of them.

    Pieces after a document's first begin at position 0 like a document of their own. Packing puts the longest first,
    each where the least room is left (best-fit decreasing), which cuts nothing further. Pieces that have nothing to
    predict are dropped.

    Args:
        documents: token ids of each.
        length: of a row.
        packing: several documents in a row, which do not see each other.
        long: documents above ``length`` are ``cut`` into pieces, keep their ``start`` alone, or ``drop`` out.
        predicted: for each document which tokens count in the loss, None for all of them.
        first: number of the first document, for `Row.origins`.
    """
    pieces: list[_Piece] = []
    for number, document in enumerate(documents):
        flags = predicted[number] if predicted is not None else None
        if len(document) > length and long == "drop":
            continue
        for start in range(0, len(document), length):
            part = tuple(document[start : start + length])
            counted = None if flags is None else tuple(flags[start : start + length])
            if len(part) > 1 and (counted is None or any(counted[1:])):
                pieces.append((part, first + number, counted))
            if long == "start":
                break
    if not packing:
        return [_row([piece]) for piece in pieces]
    rows: list[list[_Piece]] = []
    # by_room[k]: rows with exactly k tokens of room left, oldest first.
    by_room: list[list[int]] = [[] for _ in range(length + 1)]
    for piece in sorted(pieces, key=lambda piece: len(piece[0]), reverse=True):
        size = len(piece[0])
        room = next((room for room in range(size, length) if by_room[room]), None)
        if room is None:
            rows.append([])
            place, room = len(rows) - 1, length
        else:
            place = by_room[room].pop(0)
        rows[place].append(piece)
        by_room[room - size].append(place)
    return [_row(row) for row in rows]


def _row(pieces: Sequence[_Piece]) -> Row:
    documents, origins, predicted = zip(*pieces, strict=True)
    return Row(documents, origins, predicted if any(flags is not None for flags in predicted) else ())


def collate(rows: Sequence[Row], pad: int = 0) -> dict[str, torch.Tensor]:
    """Rows as one batch, each padded to the longest.

    Returns:
        ``input_ids``, ``position_ids`` and ``labels``, each ``(rows, length)``; labels are `IGNORED` at the first
        token of each document, where nothing is to be predicted, and in padding. No attention mask: positions say it
        all. ``tokens``, ``(rows,)``: how many of each row are no padding.
    """
    import torch

    length = max(row.tokens for row in rows)
    inputs = torch.full((len(rows), length), pad)
    positions = torch.zeros((len(rows), length), dtype=torch.long)
    labels = torch.full((len(rows), length), IGNORED)
    for number, row in enumerate(rows):
        start = 0
        for document, flags in zip(row.documents, row.predicted or (None,) * len(row.documents), strict=True):
            end = start + len(document)
            inputs[number, start:end] = torch.tensor(document)
            positions[number, start:end] = torch.arange(len(document))
            labels[number, start + 1 : end] = inputs[number, start + 1 : end]
            if flags is not None:
                labels[number, start:end][~torch.tensor(flags)] = IGNORED
            start = end
        positions[number, start:] = torch.arange(length - start)
    tokens = torch.tensor([row.tokens for row in rows])
    return {"input_ids": inputs, "position_ids": positions, "labels": labels, "tokens": tokens}


def fingerprint(document: Document) -> str:
    """Of a document's text, white space aside."""
    return hashlib.sha256(" ".join(document.text.split()).encode()).hexdigest()
