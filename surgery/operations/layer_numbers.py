"""Numbers of layers and heads as text, both ways: ``0-3,7``."""

from __future__ import annotations

from collections.abc import Sequence

# Largest number of a layer or head that is read.
HIGHEST = 10_000


def parse_layers(text: str, words: Sequence[str] = ()) -> tuple[int, ...]:
    """``0-3,7`` as (0, 1, 2, 3, 7).

    Args:
        text: numbers and ranges.
        words: other valid texts, for the error.

    Raises:
        ValueError: the text is not such a list.
    """
    instead = f", nor one of {', '.join(words)}, each of which stands alone" if words else ""
    chosen: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not all(number.isascii() and number.isdigit() for number in ([first, last] if dash else [first])):
            raise ValueError(f"{part.strip()!r} is neither a number nor a range like 0-3{instead}")
        low, high = int(first), int(last) if dash else int(first)
        if high < low or high > HIGHEST:
            raise ValueError(f"{part.strip()!r} is not an ascending range of layers or heads")
        chosen.update(range(low, high + 1))
    return tuple(sorted(chosen))


def summarize_numbers(numbers: Sequence[int]) -> str:
    """(0, 1, 2, 5) as ``0-2, 5``."""
    parts: list[str] = []
    ordered = sorted(numbers)
    start = 0
    for index, number in enumerate(ordered):
        if index + 1 == len(ordered) or ordered[index + 1] != number + 1:
            parts.append(str(number) if index == start else f"{ordered[start]}-{number}")
            start = index + 1
    return ", ".join(parts)
