"""Maps by layer and head in words: the extremes and where they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence


def cells(
    layers: Sequence[int], heads: Sequence[int] | None, rows: Sequence[Sequence[float | None]]
) -> list[tuple[float, int, int]]:
    """(value, layer, head) of each value that is there.

    Args:
        layers: numbers of the rows.
        heads: numbers of the columns; 0, 1, ... where absent.
        rows: ``[layer][head]``.
    """
    return [
        (value, layer, head)
        for layer, row in zip(layers, rows, strict=True)
        for head, value in zip(heads if heads is not None else range(len(row)), row, strict=True)
        if value is not None
    ]


def extremes(named: list[tuple[float, int, int]], written: Callable[[float], str]) -> str:
    """The smallest and the largest value, and where they are."""
    (low, low_layer, low_head), (high, high_layer, high_head) = min(named), max(named)
    return (
        f"smallest {written(low)} in layer {low_layer}, head {low_head}; "
        f"largest {written(high)} in layer {high_layer}, head {high_head}."
    )
