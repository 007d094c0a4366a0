"""The buckets of positions that losses are averaged over."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from surgery.errors import UsageError


def default_edges(length: int) -> tuple[int, ...]:
    """64, 128, ... below ``length``, then the last context that a sequence of this length has."""
    edges = [2**power for power in range(6, 40) if 2**power < length - 1]
    return (*edges, length - 1)


def check_edges(edges: Sequence[int], length: int) -> tuple[int, ...]:
    """Upper ends of buckets, rising; what lies beyond the longest context is cut, the rest to it is one more bucket.

    Raises:
        UsageError: an edge is not a positive number or they do not rise.
    """
    if not edges or min(edges) < 1 or any(left >= right for left, right in pairwise(edges)):
        raise UsageError(
            f"buckets {list(edges)} must be positive and rising.",
            hint="They are the most tokens seen in each bucket, as in 256, 1024, 4096.",
        )
    return (*(edge for edge in edges if edge < length - 1), length - 1)
