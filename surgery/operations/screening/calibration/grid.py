"""What every threshold and window would do to a head, for all pairs of them at once.

For a query, the keys are sorted into cells by relevance and distance. Sums over cells then give what any threshold
and window keeps, without going over the keys again.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

Array = NDArray[np.float64]

# Thresholds to choose from: none, then this number of steps of rho from -1 to 1.
STEPS = 80


@dataclass(frozen=True)
class Grid:
    """The thresholds and windows that are tried.

    Attributes:
        thresholds: lower edges of rho; a key below its head's is rejected. The first is -1: nothing is rejected.
        windows: rising; a key at a distance of its head's or more is rejected. The last one bounds nothing.
    """

    thresholds: tuple[float, ...]
    windows: tuple[int, ...]

    @classmethod
    def up_to(cls, length: int, full_window: int) -> Grid:
        """A grid for sequences of at most ``length`` tokens: steps of rho, and windows by half octaves.

        A window is only offered where the texts reach twice as far, since nothing is known of what lies beyond them.
        """
        halves = sorted({round(2 ** (half / 2)) for half in range(4, 2 * length.bit_length())})
        windows = [window for window in halves if 2 * window <= length and window < full_window]
        return cls(tuple(-1 + 2 * step / STEPS for step in range(STEPS)), (*windows, full_window))

    @property
    def shape(self) -> tuple[int, int]:
        """Thresholds and windows."""
        return len(self.thresholds), len(self.windows)


@dataclass
class PassageSums:
    """Sums over queries for one text: what is rejected, and what that costs, by layer, head, threshold and window.

    Attributes:
        rejected: keys that would be rejected, over all keys.
        keys: keys in all, one number.
        mass: softmax mass that would be rejected, summed over queries.
        damage: sum over queries of (g . change of the head's output)^2, g the gradient of the text's summed loss.
        queries: how many were looked at.
    """

    shape: tuple[int, ...]
    rejected: Array = field(init=False)
    mass: Array = field(init=False)
    damage: Array = field(init=False)
    keys: float = 0.0
    queries: int = 0

    def __post_init__(self) -> None:
        self.rejected, self.mass, self.damage = (np.zeros(self.shape) for _ in range(3))


def sum_over_keys(
    grid: Grid,
    weights: torch.Tensor,
    relevance: torch.Tensor,
    distance: torch.Tensor,
    free: torch.Tensor,
    pull: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """One head, for every threshold and window.

    Args:
        grid: thresholds and windows.
        weights: softmax weights, ``(queries, keys)``, zero where a key is not allowed.
        relevance, distance: of each key, of the same shape.
        free: keys that are allowed and no sinks, which can be rejected.
        pull: gradient of the loss by the head's output, times each key's value.

    Returns:
        rejected keys, rejected mass and damage, each ``(thresholds, windows)`` in float64, summed over queries.
    """
    queries = weights.shape[0]
    thresholds, windows = grid.shape
    row = ((relevance + 1) * (STEPS / 2)).long().clamp(0, thresholds - 1)
    edges = torch.tensor(grid.windows[:-1], device=distance.device, dtype=distance.dtype)
    column = torch.bucketize(distance.clamp(min=0).contiguous(), edges, right=True)
    cell = row * windows + column + torch.arange(queries, device=row.device)[:, None] * thresholds * windows

    def kept(values: torch.Tensor) -> torch.Tensor:
        """Sum over the keys that a threshold and window keep, ``(queries, thresholds, windows)``; sinks left out."""
        cells = torch.zeros(queries * thresholds * windows, device=values.device)
        cells.scatter_add_(0, cell.flatten(), (values * free).flatten())
        return cells.view(queries, thresholds, windows).flip(1).cumsum(1).flip(1).cumsum(2)

    mass, pulled, number = kept(weights), kept(weights * pull), kept(torch.ones_like(weights))
    missing = mass[:, :1, -1:] - mass
    left = (1 - missing).clamp(min=0)  # so a learned sink keeps its share
    whole = (weights * pull).sum(-1)[:, None, None]
    outside = whole - pulled[:, :1, -1:]  # what the sinks give
    changed = torch.where(left > 1e-6, (outside + pulled) / left.clamp(min=1e-6), torch.zeros_like(left)) - whole
    # All rejected and all kept are exact; rounding of the sums must not count as damage.
    changed = torch.where(missing <= 1e-6, torch.zeros_like(changed), changed)
    rejected = number[:, :1, -1:] - number
    return rejected.double().sum(0), missing.double().sum(0), changed.double().square().sum(0)
