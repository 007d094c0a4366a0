"""The choice of a window for every key-value group, from what it saves and from its effect together with the others.

The heads' changes of the loss are added up query by query before they are squared: heads that lose the same thing cost
more together than the sum of what each costs alone. A few hundred queries show only part of that, and a choice finds
changes that cancel in these queries alone. So half of what comes from pairs of heads counts. No head gets a threshold.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from surgery.operations.screening.calibration.choice import Choice
from surgery.operations.screening.calibration.grid import Array, PassageSums

# Passes over all groups; the choice rarely changes after the third.
PASSES = 20
# The share of the products of two groups' changes that counts. Chosen on some passages of SmolLM2 and estimated on
# others, choices cost least with about a half (docs/results/screening.md).
TOGETHER = 0.5


@dataclass(frozen=True)
class GroupEffects:
    """Effects of each window on each key-value group in the observed passages; groups are in the order of the layers.

    Attributes:
        changes: g . change of the group's output for every sampled query, ``(queries, groups, windows)``, where g is
            the gradient of the loss. It has a factor, the root of the query's share in the estimate.
        saved: share of everything that can be saved, ``(groups, windows)``; a choice saves the sum over its groups.
        rejected: share of rejected keys, ``(layers, heads, 1, windows)``.
        sizes: for each layer, the number of query heads in each of its groups.
    """

    changes: NDArray[np.float32]
    saved: Array
    rejected: Array
    sizes: tuple[int, ...]

    def choose(self, price: float, together: float = TOGETHER) -> Choice:
        """The windows that together save most, less loss_increase / price, where loss_increase is

            1/2 sum_i (together (sum_g c_ig)^2 + (1 - together) sum_g c_ig^2)    c: changes of the chosen windows


        Group after group takes its best window, given the windows of the others, until none changes.

        Args:
            price: loss in nats per token that saving everything may cost.
            together: the share of the products of two groups' changes that counts.
        """
        own = np.einsum("qgw,qgw->gw", self.changes, self.changes, dtype=np.float64)
        worth = self.saved - own / (2 * price)
        windows = worth.shape[1]

        def best(row: Array) -> int:
            # Of equal windows the widest.
            return windows - 1 - int(row[::-1].argmax())

        chosen = np.array([best(row) for row in worth])
        groups = np.arange(len(chosen))
        total = self.changes[:, groups, chosen].sum(1, dtype=np.float64)
        for _ in range(PASSES):
            before = chosen.copy()
            for group in groups:
                each = self.changes[:, group]
                others = total - each[:, chosen[group]]
                chosen[group] = best(worth[group] - together * (others @ each) / price)
                total = others + each[:, chosen[group]]
            if (chosen == before).all():
                break
        alone = float(own[groups, chosen].sum())
        return self._choice(chosen, (together * float(total @ total) + (1 - together) * alone) / 2)

    def _choice(self, chosen: NDArray[np.int64], loss_increase: float) -> Choice:
        heads = self.rejected.shape[1]
        rows, first = [], 0
        for size in self.sizes:
            rows.append(chosen[first : first + heads // size].repeat(size))
            first += heads // size
        window = np.stack(rows)
        layer_index, head_index = np.ogrid[: len(rows), :heads]
        rejected = float(self.rejected[layer_index, head_index, 0, window].mean())
        saved = float(self.saved[np.arange(len(chosen)), chosen].sum())
        return Choice(np.zeros_like(window), window, rejected, loss_increase, saved)


def group_effects(
    passages: Sequence[tuple[int, PassageSums]], sizes: Sequence[int], saved: Sequence[Sequence[float]]
) -> GroupEffects:
    """Effects of windows over passages of several texts and lengths.

    The estimated increase of the loss is that of the longest passages. Shorter ones show what happens at the positions
    that they have: each stretch of positions between two lengths counts by its share of the longest.

    Args:
        passages: number of tokens and sums of each passage; their grid has windows only.
        sizes: for each layer, the number of query heads in each of its groups.
        saved: by layer and window: what a group saves, as a share of everything.
    """
    layers = range(len(sizes))
    places = np.concatenate([sums.places for _, sums in passages])
    together = np.concatenate(
        [np.concatenate([sums.changes[layer] for layer in layers], axis=1) for _, sums in passages]
    )
    together *= np.sqrt(position_shares(places, [length for length, _ in passages]))[:, None, None].astype(np.float32)
    heads = passages[0][1].rejected.shape[1]
    of_groups = np.concatenate([np.tile(saved[layer], (heads // sizes[layer], 1)) for layer in layers])
    rejected = np.mean([sums.rejected / sums.keys for _, sums in passages], axis=0)
    return GroupEffects(together, of_groups, rejected, tuple(sizes))


def position_shares(places: NDArray[np.int64], lengths: Sequence[int]) -> Array:
    """The share of each sampled query in an estimate for the longest passages; the shares sum to one.

    Args:
        places: positions of the queries.
        lengths: of all passages.
    """
    edges = [0, *sorted(set(lengths))]
    stretch = np.searchsorted(edges, places, side="right") - 1
    shares = np.diff(edges) / edges[-1]
    counts = np.bincount(stretch, minlength=len(shares))
    return np.asarray(shares[stretch] / counts[stretch])
