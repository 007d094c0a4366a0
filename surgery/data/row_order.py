"""The order of training: by seed alone, whatever the number of processes, and resumable by its position."""

from __future__ import annotations

import random
from collections.abc import Sequence

from surgery.data.rows import Row


def draw_rows(sources: Sequence[Sequence[Row]], weights: Sequence[float], count: int, seed: int) -> list[Row]:
    """``count`` rows, such that each source has its share of the tokens all along.

    Each source is gone through in an order of its own, and again in another one when it is used up. The next row comes
    from the source that lags most behind its weight.

    Args:
        sources: rows of each source; those without any are left out.
        weights: of each source, in tokens; only their ratios count.
        count: of rows.
        seed: of the orders.
    """
    filled = [(rows, weight) for rows, weight in zip(sources, weights, strict=True) if rows]
    chances = [random.Random(f"{seed}:{number}") for number in range(len(filled))]
    waiting: list[list[Row]] = [[] for _ in filled]
    taken = [0.0] * len(filled)
    drawn: list[Row] = []
    while len(drawn) < count:
        number = min(range(len(filled)), key=lambda place: (taken[place] / filled[place][1], place))
        if not waiting[number]:
            waiting[number] = list(filled[number][0])
            chances[number].shuffle(waiting[number])
        row = waiting[number].pop()
        taken[number] += row.tokens
        drawn.append(row)
    return drawn
