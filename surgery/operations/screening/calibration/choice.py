"""Choose a threshold and a window for every head, from what each would reject and what it would cost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from surgery.operations.screening.calibration.grid import Array, Grid, Tally


@dataclass(frozen=True)
class Evidence:
    """What the observed passages say, by layer, head, threshold and window.

    Attributes:
        rejected: share of the keys, the mean over the lengths of the mean over a length's passages.
        mass: softmax mass per query that would be rejected, in the passage where it is most.
        damage: estimated rise of the loss per token: half of g-times-change squared, per query.
    """

    rejected: Array
    mass: Array
    damage: Array


def weigh(passages: Sequence[tuple[int, Tally]]) -> Evidence:
    """Put passages of several texts and lengths together; each length counts alike.

    Args:
        passages: tokens and tally of each.
    """
    by_length: dict[int, list[Tally]] = {}
    for length, tally in passages:
        by_length.setdefault(length, []).append(tally)
    rejected = [np.mean([tally.rejected / tally.keys for tally in found], axis=0) for found in by_length.values()]
    damage = [np.mean([tally.damage / tally.queries / 2 for tally in found], axis=0) for found in by_length.values()]
    return Evidence(
        rejected=np.mean(rejected, axis=0),
        mass=np.max([tally.mass / tally.queries for _, tally in passages], axis=0),
        damage=np.mean(damage, axis=0),
    )


@dataclass(frozen=True)
class Choice:
    """Indices into the grid for each layer and head, and what the evidence says of them.

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


def by_damage(evidence: Evidence, price: float, shared: Sequence[int] | None = None) -> Choice:
    """For each head what gives the most rejected keys less damage.

    Args:
        evidence: what is known.
        price: so much damage, summed over all heads, is worth rejecting all keys of all heads.
        shared: of each layer how many heads, one after the other, have one window; by default each its own.
    """
    heads = math.prod(evidence.rejected.shape[:2])
    return _best(evidence, evidence.rejected / heads - evidence.damage / price, shared)


def by_mass(evidence: Evidence, budget: float, shared: Sequence[int] | None = None) -> Choice:
    """For each head what rejects the most keys while no more than this share of mass is lost in any passage."""
    return _best(evidence, np.where(evidence.mass <= budget, evidence.rejected, -np.inf), shared)


def _best(evidence: Evidence, worth: Array, shared: Sequence[int] | None) -> Choice:
    layers, heads, _, windows = worth.shape
    sizes = shared or (1,) * layers
    window = np.empty((layers, heads), dtype=np.int64)
    for layer, (size, each) in enumerate(zip(sizes, worth.max(2), strict=True)):
        together = each.reshape(heads // size, size, windows).sum(1)
        # Of equals the widest window, then the lowest threshold: nothing is gained by more that rejects no more.
        window[layer] = (windows - 1 - together[:, ::-1].argmax(-1)).repeat(size)
    layer_index, head_index = np.ogrid[:layers, :heads]
    threshold = worth[layer_index, head_index, :, window].argmax(-1)
    rejected, damage = (
        part[layer_index, head_index, threshold, window] for part in (evidence.rejected, evidence.damage)
    )
    return Choice(threshold, window, float(rejected.mean()), float(damage.sum()))
