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
    """Rising upper ends of buckets, cut at the longest context, which ends the last bucket.

    Raises:
        UsageError: an edge is not positive, or the edges do not rise.
    """
    if not edges or min(edges) < 1 or any(left >= right for left, right in pairwise(edges)):
        raise UsageError(
            f"buckets {list(edges)} must be positive and rising",
            hint="Each number is the most tokens seen in a bucket, as in 256, 1024, 4096.",
        )
    return (*(edge for edge in edges if edge < length - 1), length - 1)
