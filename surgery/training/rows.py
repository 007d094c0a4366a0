"""The rows of a stage: rows to train on, in their random order, and held-out rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from surgery.data import Row
from surgery.data.stream import RowStream


@dataclass(frozen=True)
class StageRows:
    """Rows of one stage.

    Attributes:
        train: rows of each source; of a stream, its first ones.
        held_out: rows to measure on.
        weights: of the sources, by tokens.
        stream: the rows to train on, if they are read as a stream.
        pad: token id that fills rows up.
    """

    train: Sequence[Sequence[Row]]
    held_out: Sequence[Row] = ()
    weights: Sequence[float] = (1.0,)
    stream: RowStream | None = None
    pad: int = 0


class RowDataset(torch.utils.data.Dataset[Row]):
    """A number of rows as a dataset, from a list or from a stream; they are read in order."""

    def __init__(self, rows: Sequence[Row] | RowStream, count: int) -> None:
        self._rows, self._count = rows, count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, position: int) -> Row:
        return self._rows[position]
