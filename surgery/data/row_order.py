"""The order of training rows: it depends on the seed alone, not on the number of processes."""

from __future__ import annotations

import random
from collections.abc import Sequence

from surgery.data.rows import Row


def draw_rows(sources: Sequence[Sequence[Row]], weights: Sequence[float], count: int, seed: int) -> list[Row]:
    """Draw ``count`` rows, so that at any point each source has its share of the tokens.

    The next row comes from the source that lags most behind its weight. A source is read in a random order of its own;
    once all its rows are drawn, it starts again in another order.

    Args:
        sources: rows of each source; empty sources are ignored.
        weights: of each source, in tokens; only their ratios count.
        count: number of rows.
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
