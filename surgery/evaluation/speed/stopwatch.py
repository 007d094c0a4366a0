"""Timing of several alternatives in turn, so that noise affects all of them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

Call = Callable[[], Any]


def interleaved(
    ways: Mapping[str, Call], repeats: int, warmup: int = 1, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Seconds of each alternative, measured in turn, so that noise affects all of them alike.

    With ``time.process_time`` as the clock, and one thread, other programs on the machine do not count.
    """
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(warmup + repeats):
        order = list(ways) if turn % 2 else list(ways)[::-1]
        for name in order:
            began = clock()
            ways[name]()
            if turn >= warmup:
                seconds[name].append(clock() - began)
    return seconds


def ratio(seconds: Mapping[str, list[float]], way: str, against: str) -> float:
    """Median of the ratios within each turn: steadier than a ratio of medians where the machine drifts."""
    return statistics.median(a / b for a, b in zip(seconds[way], seconds[against], strict=True))
