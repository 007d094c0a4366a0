"""The choice of a threshold and a window for every head, from the keys that each rejects and the loss that it costs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from surgery.operations.screening.calibration.grid import Array, Grid, PassageSums


@dataclass(frozen=True)
class Effects:
    """Effects of each threshold and window in the observed passages, ``(layers, heads, thresholds, windows)``.

    Attributes:
        rejected: share of rejected keys: the mean over the passages of a length, then over the lengths.
        mass: rejected softmax mass per query, in the passage where it is greatest.
        loss_increase: estimated increase of the loss, in nats per token: half of (gradient . change)^2, per query.
    """

    rejected: Array
    mass: Array
    loss_increase: Array


def mean_effects(passages: Sequence[tuple[int, PassageSums]]) -> Effects:
    """Effects over passages of several texts and lengths; each length has the same weight.

    Args:
        passages: number of tokens and sums of each passage.
    """
    by_length: dict[int, list[PassageSums]] = {}
    for length, sums in passages:
        by_length.setdefault(length, []).append(sums)
    rejected = [np.mean([sums.rejected / sums.keys for sums in found], axis=0) for found in by_length.values()]
    increase = [
        np.mean([sums.squared_change / sums.queries / 2 for sums in found], axis=0) for found in by_length.values()
    ]
    return Effects(
        rejected=np.mean(rejected, axis=0),
        mass=np.max([sums.mass / sums.queries for _, sums in passages], axis=0),
        loss_increase=np.mean(increase, axis=0),
    )


@dataclass(frozen=True)
class Choice:
    """Indices into the grid for each layer and head, and their effects.

    Attributes:
        threshold, window: ``(layers, heads)``.
        rejected: share of all keys.
        loss_increase: estimated increase of the loss, in nats per token.
        saved: share of what the calibration saves: of the keys, of the cache or of the time of attention.
    """

    threshold: NDArray[np.int64]
    window: NDArray[np.int64]
    rejected: float
    loss_increase: float
    saved: float

    def is_open(self, grid: Grid) -> NDArray[np.bool_]:
        """Heads that reject nothing, ``(layers, heads)``."""
        return (self.threshold == 0) & (self.window == len(grid.windows) - 1)


def choose_by_loss(effects: Effects, price: float, shared: Sequence[int] | None = None) -> Choice:
    """The pair of each head with the greatest share of rejected keys less loss_increase / price.

    Args:
        effects: of every threshold and window.
        price: loss in nats per token that the rejection of all keys of all heads may cost.
        shared: for each layer, the number of neighbouring heads that share a window; by default each head has its own.
    """
    heads = math.prod(effects.rejected.shape[:2])
    return _best(effects, effects.rejected / heads - effects.loss_increase / price, shared)


def price_for(choose: Callable[[float], Choice], allowed: float) -> float:
    """The price at which the estimated increase of the loss equals ``allowed``, by bisection.

    Args:
        choose: the choice for a price.
        allowed: increase of the loss, in nats per token.
    """
    low, high = 1e-9, 1e6
    while high / low > 1.05:
        middle = math.sqrt(low * high)
        if choose(middle).loss_increase <= allowed:
            low = middle
        else:
            high = middle
    return low


def choose_by_mass(effects: Effects, budget: float, shared: Sequence[int] | None = None) -> Choice:
    """The pair of each head that rejects most keys, and at most the share ``budget`` of softmax mass in any passage."""
    return _best(effects, np.where(effects.mass <= budget, effects.rejected, -np.inf), shared)


def _best(effects: Effects, worth: Array, shared: Sequence[int] | None) -> Choice:
    layers, heads, _, windows = worth.shape
    sizes = shared or (1,) * layers
    window = np.empty((layers, heads), dtype=np.int64)
    for layer, (size, each) in enumerate(zip(sizes, worth.max(2), strict=True)):
        together = each.reshape(heads // size, size, windows).sum(1)
        # Of equal pairs the widest window, then the lowest threshold: a tighter bound would reject nothing more.
        window[layer] = (windows - 1 - together[:, ::-1].argmax(-1)).repeat(size)
    layer_index, head_index = np.ogrid[:layers, :heads]
    threshold = worth[layer_index, head_index, :, window].argmax(-1)
    chosen = (layer_index, head_index, threshold, window)
    rejected = float(effects.rejected[chosen].mean())
    return Choice(threshold, window, rejected, float(effects.loss_increase[chosen].sum()), saved=rejected)
