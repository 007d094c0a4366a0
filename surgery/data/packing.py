"""Cutting documents into sequences for training, and putting several short ones into one sequence.

A packed sequence behaves as its documents would alone: positions restart with each document, and transformers builds
the mask from positions that restart (as long as it gets neither a 2-D mask nor a cache), so attention and n restart
too. No label crosses a border. Padding is one more document, at the end, without labels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from surgery.data.texts import Document
from surgery.errors import UsageError

if TYPE_CHECKING:
    import torch

IGNORED = -100


@dataclass(frozen=True)
class Row:
    """One sequence: its documents' tokens, each document separate."""

    documents: tuple[tuple[int, ...], ...]

    @property
    def tokens(self) -> int:
        """Number of tokens, padding not counted."""
        return sum(map(len, self.documents))

    @property
    def targets(self) -> int:
        """Number of tokens that are predicted: all but the first of each document."""
        return self.tokens - len(self.documents)


def split_documents(documents: Sequence[Document], separator: str | None) -> list[Document]:
    """Cut files into documents at a separator, which belongs to neither side; empty pieces are dropped."""
    if separator is None:
        return list(documents)
    return [
        Document(f"{document.name}#{number}", piece)
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
        share: of all characters, to hold out; at least one document is held out, and one kept.
        seed: of the order.

    Raises:
        UsageError: fewer than two different documents.
    """
    groups: dict[str, list[Document]] = {}
    for document in documents:
        groups.setdefault(_fingerprint(document), []).append(document)
    if len(groups) < 2:
        raise UsageError(
            f"data.held_out {share:g} needs at least two different documents, the text has {len(groups)}.",
            hint="Give more files, a data.separator between documents, other files as data.held_out, or "
            "data.held_out: 0.",
        )
    order = sorted(groups, key=lambda key: hashlib.sha256(f"{seed}:{key}".encode()).digest())
    wanted = share * sum(len(document.text) for document in documents)
    held: set[str] = set()
    size = 0
    for key in order[:-1]:
        if held and size >= wanted:
            break
        held.add(key)
        size += sum(len(document.text) for document in groups[key])
    train = [document for document in documents if _fingerprint(document) not in held]
    return train, [document for document in documents if _fingerprint(document) in held]


def without(documents: Sequence[Document], held_out: Sequence[Document]) -> list[Document]:
    """The documents whose text is not among those held out."""
    held = {_fingerprint(document) for document in held_out}
    return [document for document in documents if _fingerprint(document) not in held]


def make_rows(documents: Iterable[Sequence[int]], length: int, *, packing: bool) -> list[Row]:
    """Cut tokenized documents into pieces of at most ``length`` and, with packing, fill rows with several of them.

    Pieces after a document's first begin at position 0 like a document of their own. Packing puts the longest first,
    each where the least room is left (best-fit decreasing), which cuts nothing further. Pieces of one token have
    nothing to predict and are dropped.
    """
    pieces = [
        tuple(document[start : start + length]) for document in documents for start in range(0, len(document), length)
    ]
    pieces = [piece for piece in pieces if len(piece) > 1]
    if not packing:
        return [Row((piece,)) for piece in pieces]
    rows: list[list[tuple[int, ...]]] = []
    # by_room[k]: rows with exactly k tokens of room left, oldest first.
    by_room: list[list[int]] = [[] for _ in range(length + 1)]
    for piece in sorted(pieces, key=len, reverse=True):
        room = next((room for room in range(len(piece), length) if by_room[room]), None)
        if room is None:
            rows.append([])
            number, room = len(rows) - 1, length
        else:
            number = by_room[room].pop(0)
        rows[number].append(piece)
        by_room[room - len(piece)].append(number)
    return [Row(tuple(row)) for row in rows]


def collate(rows: Sequence[Row], pad: int = 0) -> dict[str, torch.Tensor]:
    """Rows as one batch, each padded to the longest.

    Returns:
        ``input_ids``, ``position_ids`` and ``labels``, each ``(rows, length)``; labels are `IGNORED` at the first
        token of each document and in padding. No attention mask: positions say it all.
    """
    import torch

    length = max(row.tokens for row in rows)
    inputs = torch.full((len(rows), length), pad)
    positions = torch.zeros((len(rows), length), dtype=torch.long)
    labels = torch.full((len(rows), length), IGNORED)
    for number, row in enumerate(rows):
        start = 0
        for document in row.documents:
            end = start + len(document)
            inputs[number, start:end] = torch.tensor(document)
            positions[number, start:end] = torch.arange(len(document))
            labels[number, start + 1 : end] = inputs[number, start + 1 : end]
            start = end
        positions[number, start:] = torch.arange(length - start)
    return {"input_ids": inputs, "position_ids": positions, "labels": labels}


def _fingerprint(document: Document) -> str:
    return hashlib.sha256(" ".join(document.text.split()).encode()).hexdigest()
