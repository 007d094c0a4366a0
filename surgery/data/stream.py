"""Rows from sources that do not fit in memory: read when they are needed, and again from any row.

Documents are drawn from the sources by weight, one window of rows at a time; a window is packed and its rows are
shuffled. A snapshot holds the position of every source at the start of a window, so a resumed stream reads one window
again and nothing before it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from surgery.data.documents import Document
from surgery.data.rows import Row
from surgery.data.sources import Position, SourceReader
from surgery.errors import UsageError

# A document's token ids, and which of them count in the loss (None: all).
TokenizedDocument = tuple[Sequence[int], Sequence[bool] | None]
StreamSnapshot = dict[str, Any]
ROWS_IN_WINDOW = 128
_SNAPSHOTS = 4


class Mixture:
    """Documents of several sources without end; at any point each source has its share of the tokens.

    Args:
        readers: of the sources.
        weights: of each source, in tokens; only their ratios count.
        wanted: which documents to use (the held-out ones are not).
    """

    def __init__(
        self, readers: Sequence[SourceReader], weights: Sequence[float], wanted: Callable[[Document], bool]
    ) -> None:
        self._readers, self._weights, self._wanted = readers, weights, wanted
        self.restore(None)

    def restore(self, state: dict[str, Any] | None) -> None:
        """Continue from `state`, or start from the beginning."""
        count = len(self._readers)
        self._taken: list[float] = list(state["taken"]) if state else [0.0] * count
        self._positions: list[Position | None] = list(state["positions"]) if state else [None] * count
        self.passes: list[int] = list(state["passes"]) if state else [0] * count
        self._open: list[Iterator[tuple[Document, Position]] | None] = [None] * count

    def state(self) -> dict[str, Any]:
        """The position in every source, for `restore`."""
        return {"taken": list(self._taken), "positions": list(self._positions), "passes": list(self.passes)}

    def take(self, count_tokens: Callable[[Document], int]) -> Document:
        """The next document, from the source that lags most behind its weight.

        Raises:
            UsageError: a source has no document to train on.
        """
        number = min(range(len(self._readers)), key=lambda place: (self._taken[place] / self._weights[place], place))
        restarts = 0
        while True:
            iterator = self._open[number]
            if iterator is None:
                iterator = self._open[number] = self._readers[number].documents(self._positions[number])
            document, position = next(iterator, (None, None))
            if document is None:
                restarts += 1
                self._open[number], self._positions[number] = None, None
                self.passes[number] += 1
                if restarts > 1:
                    raise UsageError(f"{self._readers[number].key} leaves nothing to train on", hint="Give more text.")
                continue
            self._positions[number] = position
            if self._wanted(document):
                self._taken[number] += count_tokens(document)
                return document


class RowStream:
    """Rows by number, read forward.

    Args:
        mixture: of documents.
        tokens: tokenizes a document.
        pack: packs tokenized documents into rows.
        length: of a row, in tokens; it decides when a window is full.
        seed: of the order within a window.
        snapshot: where to start, from `snapshot`; without it at row 0.
    """

    def __init__(
        self,
        mixture: Mixture,
        tokens: Callable[[Document], TokenizedDocument],
        pack: Callable[[Sequence[TokenizedDocument]], list[Row]],
        *,
        length: int,
        seed: int,
        snapshot: StreamSnapshot | None = None,
    ) -> None:
        self._mixture, self._tokens, self._pack = mixture, tokens, pack
        self._length, self._seed = length, seed
        self._snapshots: list[StreamSnapshot] = [snapshot or {"row": 0, "mixture": None}]
        self._rows: list[Row] = []
        self._first = self._snapshots[0]["row"]
        self._mixture.restore(self._snapshots[0]["mixture"])
        self._fill()

    def __getitem__(self, number: int) -> Row:
        if number < self._first:
            self._rewind(number)
        while number >= self._first + len(self._rows):
            self._first += len(self._rows)
            self._snapshots.append({"row": self._first, "mixture": self._mixture.state()})
            del self._snapshots[:-_SNAPSHOTS]
            self._fill()
        return self._rows[number - self._first]

    def window(self) -> list[Row]:
        """The rows of the current window."""
        return list(self._rows)

    def snapshot(self, number: int) -> StreamSnapshot:
        """The snapshot from which row ``number`` can be read again: the start of its window."""
        return next(snapshot for snapshot in reversed(self._snapshots) if snapshot["row"] <= number)

    def _rewind(self, number: int) -> None:
        earlier = [snapshot for snapshot in self._snapshots if snapshot["row"] <= number]
        if not earlier:
            raise IndexError(f"row {number} lies before the first snapshot of the stream")
        self._snapshots = earlier
        self._first = earlier[-1]["row"]
        self._mixture.restore(earlier[-1]["mixture"])
        self._fill()

    def _fill(self) -> None:
        """Read the next window."""
        taken: list[TokenizedDocument] = []

        def count(document: Document) -> int:
            taken.append(self._tokens(document))
            return len(taken[-1][0])

        total = 0
        self._rows = []
        while not self._rows:
            while total < ROWS_IN_WINDOW * self._length:
                self._mixture.take(count)
                total += max(1, len(taken[-1][0]))
            self._rows = self._pack(taken)
            total = 0
        random.Random(f"{self._seed}:{self._first}").shuffle(self._rows)
