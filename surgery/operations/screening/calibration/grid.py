"""The effect of every pair of threshold and window on a head, computed for all pairs at once.

The keys of a query are sorted into cells by relevance and distance. Sums over cells then give the keys that any pair
keeps, without another pass over the keys.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

Array = NDArray[np.float64]

# Number of thresholds to choose from: steps of rho from -1 (which rejects nothing) to 1.
STEPS = 80


@dataclass(frozen=True)
class Grid:
    """The thresholds and windows to choose from.

    Attributes:
        thresholds: ascending values of rho; a head rejects keys below its threshold. The first, -1, rejects nothing.
        windows: ascending, in tokens; a head rejects keys at this distance or farther. The last rejects nothing.
    """

    thresholds: tuple[float, ...]
    windows: tuple[int, ...]

    @classmethod
    def up_to(cls, length: int, full_window: int) -> Grid:
        """A grid for sequences of at most ``length`` tokens: steps of rho, and windows by half octaves.

        It holds only windows up to half of ``length``: the texts show too little beyond a longer window.
        """
        halves = sorted({round(2 ** (half / 2)) for half in range(4, 2 * length.bit_length())})
        windows = [window for window in halves if 2 * window <= length and window < full_window]
        return cls(tuple(-1 + 2 * step / STEPS for step in range(STEPS)), (*windows, full_window))

    @classmethod
    def of_windows(cls, length: int, full_window: int) -> Grid:
        """The windows of `up_to`, and the one threshold that rejects nothing."""
        return cls((-1.0,), cls.up_to(length, full_window).windows)

    @property
    def shape(self) -> tuple[int, int]:
        """The numbers of thresholds and of windows."""
        return len(self.thresholds), len(self.windows)


@dataclass
class PassageSums:
    """Sums over the sampled queries of one passage, ``(layers, heads, thresholds, windows)``.

    Attributes:
        rejected: number of rejected keys.
        keys: number of all keys, a scalar.
        mass: rejected softmax mass.
        squared_change: (g . change of the head's output)^2, where g is the gradient of the passage's summed loss by the
            output.
        queries: number of sampled queries.
        places: positions of these queries in the passage.
        changes: for each layer the (g . change) of every query, summed over the query heads of a key-value head, with
            the first threshold: ``(queries, key-value heads, windows)``, float32. Empty if a grid has more thresholds.
    """

    shape: tuple[int, ...]
    rejected: Array = field(init=False)
    mass: Array = field(init=False)
    squared_change: Array = field(init=False)
    keys: float = 0.0
    queries: int = 0
    places: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    changes: dict[int, NDArray[np.float32]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.rejected, self.mass, self.squared_change = (np.zeros(self.shape) for _ in range(3))


def sum_over_keys(
    grid: Grid,
    weights: torch.Tensor,
    relevance: torch.Tensor,
    distance: torch.Tensor,
    free: torch.Tensor,
    pull: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Sums of one head for every threshold and window.

    Args:
        grid: thresholds and windows.
        weights: softmax weights, ``(queries, keys)``; 0 where a key is not allowed.
        relevance: rho of each key, ``(queries, keys)``.
        distance: distance of each key in tokens, ``(queries, keys)``.
        free: the keys that can be rejected, ``(queries, keys)``: allowed, and no sinks.
        pull: product of the gradient of the loss by the head's output with each key's value, ``(queries, keys)``.

    Returns:
        The sums `PassageSums.rejected`, ``mass`` and ``squared_change``, each ``(thresholds, windows)`` in float64.
    """
    queries = weights.shape[0]
    thresholds, windows = grid.shape
    row = ((relevance + 1) * (STEPS / 2)).long().clamp(0, thresholds - 1)
    edges = torch.tensor(grid.windows[:-1], device=distance.device, dtype=distance.dtype)
    column = torch.bucketize(distance.clamp(min=0).contiguous(), edges, right=True)
    cell = row * windows + column + torch.arange(queries, device=row.device)[:, None] * thresholds * windows

    def kept(values: torch.Tensor) -> torch.Tensor:
        """Sum over the keys that each pair keeps, without sinks, ``(queries, thresholds, windows)``."""
        cells = torch.zeros(queries * thresholds * windows, device=values.device)
        cells.scatter_add_(0, cell.flatten(), (values * free).flatten())
        return cells.view(queries, thresholds, windows).flip(1).cumsum(1).flip(1).cumsum(2)

    mass, pulled, number = kept(weights), kept(weights * pull), kept(torch.ones_like(weights))
    missing = mass[:, :1, -1:] - mass
    changed = _change(missing, pulled, pulled[:, :1, -1:], (weights * pull).sum(-1)[:, None, None])
    rejected = number[:, :1, -1:] - number
    return rejected.double().sum(0), missing.double().sum(0), changed.double().square().sum(0)


def sum_over_windows(
    grid: Grid,
    weights: torch.Tensor,
    distance: torch.Tensor,
    free: torch.Tensor,
    pull: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Sums of all heads of a layer for every window, without thresholds.

    Args:
        grid: windows.
        weights: softmax weights, ``(heads, queries, keys)``; 0 where a key is not allowed.
        distance: distance of each key in tokens, ``(queries, keys)``; it never rises along the keys.
        free: as of :func:`sum_over_keys`.
        pull: as of :func:`sum_over_keys`, ``(heads, queries, keys)``.

    Returns:
        Rejected keys ``(windows)`` and mass ``(heads, windows)``, summed over the queries, in float64; and the change
        of each query, ``(heads, queries, windows)``.
    """
    edges = torch.tensor([-window for window in grid.windows[:-1]], device=distance.device, dtype=distance.dtype)
    # The first key inside each window; the full window begins at the first of all.
    first = torch.searchsorted(-distance.contiguous(), edges.expand(len(distance), -1).contiguous(), right=True)
    first = nn.functional.pad(first, (0, 1))

    def kept(values: torch.Tensor) -> torch.Tensor:
        """Sum over the free keys from ``first`` on, ``(..., queries, windows)``."""
        before = nn.functional.pad((values * free).cumsum(-1), (1, 0))
        return before[..., -1:] - before.gather(-1, first.expand(*values.shape[:-1], -1))

    mass, pulled = kept(weights), kept(weights * pull)
    missing = mass[..., -1:] - mass
    changed = _change(missing, pulled, pulled[..., -1:], (weights * pull).sum(-1, keepdim=True))
    number = kept(torch.ones_like(distance, dtype=torch.float32))
    return (number[..., -1:] - number).double().sum(0), missing.double().sum(1), changed


def _change(missing: torch.Tensor, pulled: torch.Tensor, all_free: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
    """Change of the product with the gradient when a share of the mass goes and the rest is renormalised.

    Args:
        missing: rejected mass.
        pulled: contribution of the kept keys that are no sinks.
        all_free: contribution of all keys that are no sinks.
        whole: contribution of all keys.
    """
    left = (1 - missing).clamp(min=0)  # a learned sink keeps its share
    outside = whole - all_free  # the contribution of the sinks
    changed = torch.where(left > 1e-6, (outside + pulled) / left.clamp(min=1e-6), torch.zeros_like(left)) - whole
    # All rejected and all kept are exact; rounding of the sums must not count as a change.
    return torch.where(missing <= 1e-6, torch.zeros_like(changed), changed)
