"""Choose a threshold and a window for every head, from what each would reject and what it would cost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from surgery.operations.screening.calibration.grid import Array, Grid, PassageSums


@dataclass(frozen=True)
class Effects:
    """What the observed passages say, by layer, head, threshold and window.

    Attributes:
        rejected: share of the keys, the mean over the lengths of the mean over a length's passages.
        mass: softmax mass per query that would be rejected, in the passage where it is most.
        damage: estimated rise of the loss per token: half of g-times-change squared, per query.
    """

    rejected: Array
    mass: Array
    damage: Array


def mean_effects(passages: Sequence[tuple[int, PassageSums]]) -> Effects:
    """Put passages of several texts and lengths together; each length counts alike.

    Args:
        passages: tokens and sums of each.
    """
    by_length: dict[int, list[PassageSums]] = {}
    for length, tally in passages:
        by_length.setdefault(length, []).append(tally)
    rejected = [np.mean([tally.rejected / tally.keys for tally in found], axis=0) for found in by_length.values()]
    damage = [np.mean([tally.damage / tally.queries / 2 for tally in found], axis=0) for found in by_length.values()]
    return Effects(
        rejected=np.mean(rejected, axis=0),
        mass=np.max([tally.mass / tally.queries for _, tally in passages], axis=0),
        damage=np.mean(damage, axis=0),
    )


@dataclass(frozen=True)
class Choice:
    """Indices into the grid for each layer and head, and their effects.

    Attributes:
        threshold, window: ``(layers, heads)``.
        rejected: share of all keys.
        damage: estimated rise of the loss per token.
    """

    threshold: NDArray[np.int64]
    window: NDArray[np.int64]
    rejected: float
    damage: float

    def is_open(self, grid: Grid) -> NDArray[np.bool_]:
        """Heads that reject nothing, ``(layers, heads)``."""
        return (self.threshold == 0) & (self.window == len(grid.windows) - 1)


def choose_by_damage(effects: Effects, price: float, shared: Sequence[int] | None = None) -> Choice:
    """For each head what gives the most rejected keys less damage.

    Args:
        effects: of every threshold and window.
        price: so much damage, summed over all heads, is worth rejecting all keys of all heads.
        shared: of each layer how many heads, one after the other, have one window; by default each its own.
    """
    heads = math.prod(effects.rejected.shape[:2])
    return _best(effects, effects.rejected / heads - effects.damage / price, shared)


def first_price(effects: Effects, allowed: float, shared: Sequence[int] | None = None) -> float:
    """The price at which the estimated damage equals ``allowed``, by bisection; ``shared`` as in choose_by_damage."""
    low, high = 1e-9, 1e6
    while high / low > 1.05:
        middle = math.sqrt(low * high)
        if choose_by_damage(effects, middle, shared).damage <= allowed:
            low = middle
        else:
            high = middle
    return low


def choose_by_mass(effects: Effects, budget: float, shared: Sequence[int] | None = None) -> Choice:
    """For each head what rejects the most keys while no more than this share of mass is lost in any passage."""
    return _best(effects, np.where(effects.mass <= budget, effects.rejected, -np.inf), shared)


def _best(effects: Effects, worth: Array, shared: Sequence[int] | None) -> Choice:
    layers, heads, _, windows = worth.shape
    sizes = shared or (1,) * layers
    window = np.empty((layers, heads), dtype=np.int64)
    for layer, (size, each) in enumerate(zip(sizes, worth.max(2), strict=True)):
        together = each.reshape(heads // size, size, windows).sum(1)
        # Of equals the widest window, then the lowest threshold: nothing is gained by more that rejects no more.
        window[layer] = (windows - 1 - together[:, ::-1].argmax(-1)).repeat(size)
    layer_index, head_index = np.ogrid[:layers, :heads]
    threshold = worth[layer_index, head_index, :, window].argmax(-1)
    rejected, damage = (part[layer_index, head_index, threshold, window] for part in (effects.rejected, effects.damage))
    return Choice(threshold, window, float(rejected.mean()), float(damage.sum()))
