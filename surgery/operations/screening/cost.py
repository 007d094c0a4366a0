"""The time of attention inside windows, by a model whose numbers were measured.

``costs.json`` has the measured times, the numbers that were fitted to them, and the command that wrote it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from surgery.operations.screening.savings import BLOCK, blocks_outside, kept_keys

COSTS = Path(__file__).with_name("costs.json")


@dataclass(frozen=True)
class PhaseCost:
    """The time of a layer with windows in units of the open layer's work: ``fixed + each * work``.

    Prefill counts work in blocks of 128 queries and 128 keys, decoding in keys. The open layer takes its work once.
    """

    fixed: float
    each: float

    def share(self, work: float, whole: float) -> float:
        """Time with windows over time of the open layer."""
        return (self.fixed + self.each * work) / whole


@dataclass(frozen=True)
class CostModel:
    """The time of prefill and of decoding."""

    prefill: PhaseCost
    decoding: PhaseCost

    def share(self, window: float, tokens: int, sinks: int) -> float:
        """Time of attention with a window over time without, at this length: the mean of prefill and decoding."""
        if math.isinf(window):
            return 1.0
        count = math.ceil(tokens / BLOCK)
        blocks = count * (count + 1) / 2
        prefill = self.prefill.share(blocks * (1 - blocks_outside(window, tokens, sinks)), blocks)
        return (prefill + self.decoding.share(kept_keys(window, tokens, sinks), tokens)) / 2


def read_costs(path: Path = COSTS) -> CostModel:
    """The cost model that travels with the package."""
    from surgery.checkpoint import load_json

    return CostModel(**{phase: PhaseCost(**numbers) for phase, numbers in load_json(path)["model"].items()})


def fit_phase(measured: Sequence[tuple[float, float, float, float]]) -> PhaseCost:
    """The numbers of a phase from its measurements, by least squares on the ratios of time; neither is negative.

    Args:
        measured: work without windows and its seconds, work with windows and its seconds.
    """
    # The open layer's seconds are a constant and a slope; only the slope is attention.
    whole, seconds, work, windowed = (np.array(column) for column in zip(*measured, strict=True))
    slope, constant = np.polyfit(whole, seconds, 1)
    # Each ratio counts alike: the shortest and the longest length are as important.
    known = np.stack([np.ones_like(work), work], 1) / whole[:, None]
    shares = (windowed - constant) / slope / whole
    found, *_ = np.linalg.lstsq(known, shares, rcond=None)
    if min(found) < 0:
        # The other one alone.
        column = known[:, int(found.argmax())]
        found = np.where(found == found.max(), column @ shares / (column @ column), 0.0)
    return PhaseCost(float(found[0]), float(found[1]))


def to_plain(model: CostModel) -> dict[str, Any]:
    """Plain data, as in ``costs.json``."""
    return {
        phase: {"fixed": cost.fixed, "each": cost.each}
        for phase, cost in (("prefill", model.prefill), ("decoding", model.decoding))
    }
