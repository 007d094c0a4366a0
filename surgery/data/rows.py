"""Rows: token sequences for training, each with one document or several that do not see each other.

A packed row behaves as its documents would alone. Positions restart with each document, and transformers builds the
mask from positions that restart (as long as it gets neither a 2-D mask nor a cache), so attention and n restart too.
No label crosses a border between documents. Padding is one more document, at the end, without labels.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch

IGNORED = -100  # label of a token that does not count in the loss
LongDocuments = Literal["cut", "start", "drop"]
# Token ids, number of the document, which tokens count in the loss.
_Piece = tuple[tuple[int, ...], int, tuple[bool, ...] | None]


@dataclass(frozen=True)
class Row:
    """One sequence, with the tokens of each document apart.

    Attributes:
        documents: token ids of each document, or of a piece of it.
        origins: number of the document that each of them comes from; may be empty.
        predicted: for each of them which tokens count in the loss; None if all do. Empty if all tokens of all
            documents count. The first token of a document never counts, because nothing predicts it.
    """

    documents: tuple[tuple[int, ...], ...]
    origins: tuple[int, ...] = ()
    predicted: tuple[tuple[bool, ...] | None, ...] = ()

    @property
    def tokens(self) -> int:
        """Number of tokens, without padding."""
        return sum(map(len, self.documents))

    @property
    def targets(self) -> int:
        """Number of tokens that count in the loss."""
        return sum(sum(flags[1:]) for flags in self.flags())

    def flags(self) -> list[tuple[bool, ...]]:
        """``predicted`` with one flag for each token."""
        given = self.predicted or (None,) * len(self.documents)
        return [
            (True,) * len(document) if flags is None else flags
            for document, flags in zip(self.documents, given, strict=True)
        ]


def make_rows(
    documents: Iterable[Sequence[int]],
    length: int,
    *,
    packing: bool,
    long: LongDocuments = "cut",
    predicted: Sequence[Sequence[bool] | None] | None = None,
    first: int = 0,
) -> list[Row]:
    """Cut tokenized documents into pieces of at most ``length`` tokens; with packing, fill rows with several pieces.

    Each later piece of a document starts at position 0, like a document of its own. Packing places the longest piece
    first, where it leaves the least room (best-fit decreasing); it cuts nothing further. Pieces without a token to
    predict are dropped.

    Args:
        documents: token ids of each.
        length: of a row, in tokens.
        packing: put several documents into a row; they do not see each other.
        long: documents above ``length``: ``cut`` them into pieces, keep their ``start`` only, or ``drop`` them.
        predicted: for each document which tokens count in the loss; None if all do.
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
        ``input_ids``, ``position_ids`` and ``labels``, each ``(rows, length)``. Labels are `IGNORED` in padding, at the
        first token of each document, and at tokens that do not count. There is no attention mask: the positions
        define it. ``held``, ``(rows, length)``: tokens of a document, except its first, that are not marked as answers;
        of a document without marks all of them. ``tokens``, ``(rows,)``: number of tokens of each row, without padding.
    """
    import torch

    length = max(row.tokens for row in rows)
    inputs = torch.full((len(rows), length), pad)
    positions = torch.zeros((len(rows), length), dtype=torch.long)
    labels = torch.full((len(rows), length), IGNORED)
    held = torch.zeros((len(rows), length), dtype=torch.bool)
    for number, row in enumerate(rows):
        start = 0
        for document, flags in zip(row.documents, row.predicted or (None,) * len(row.documents), strict=True):
            end = start + len(document)
            inputs[number, start:end] = torch.tensor(document)
            positions[number, start:end] = torch.arange(len(document))
            labels[number, start + 1 : end] = inputs[number, start + 1 : end]
            held[number, start + 1 : end] = True
            if flags is not None:
                held[number, start:end] &= ~torch.tensor(flags)
                labels[number, start:end][~torch.tensor(flags)] = IGNORED
            start = end
        positions[number, start:] = torch.arange(length - start)
    tokens = torch.tensor([row.tokens for row in rows])
    return {"input_ids": inputs, "position_ids": positions, "labels": labels, "held": held, "tokens": tokens}
