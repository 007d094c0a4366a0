"""The share of keys that screening rejects, by layer and head, counted while a model runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


class Rejections:
    """Counts by layer: keys that are rejected, of those that a query may attend to, for each query head."""

    def __init__(self) -> None:
        self.rejected: dict[int, torch.Tensor] = {}
        self.keys: dict[int, float] = {}

    def shares(self) -> dict[int, list[float]]:
        """Share of rejected keys of each head, by layer; empty before a model has run."""
        return {layer: (self.rejected[layer] / self.keys[layer]).tolist() for layer in sorted(self.rejected)}

    def total(self) -> float:
        """Share of rejected keys over all layers and heads, each counting alike; 0 before a model has run."""
        shares = [share for heads in self.shares().values() for share in heads]
        return sum(shares) / len(shares) if shares else 0.0

    def add(self, layer: int, observation: Any) -> None:
        """Count a block of queries, as the travelling code shows it."""
        allowed = observation.allowed
        rejected = ((observation.acceptance == 0) & allowed).sum((0, 2, 3)).double().cpu()
        # A mask of one row stands for every row of the batch.
        rows = observation.acceptance.shape[0] // allowed.shape[0]
        self.rejected[layer] = self.rejected.get(layer, 0) + rejected
        self.keys[layer] = self.keys.get(layer, 0.0) + float(allowed.sum()) * rows


@contextmanager
def counting_rejections(model: Any, rows: torch.Tensor | None = None) -> Iterator[Rejections]:
    """Count what screening rejects in every forward pass inside the ``with``; outputs stay as they are.

    Args:
        model: with screening on some layers; on a model without it nothing is counted.
        rows: numbers of the queries that are looked at in each pass; all of them where absent. Looking costs a
            dense softmax over these queries.
    """
    counts = Rejections()
    screened = [
        (int(module.layer_idx), module.screening)
        for module in model.modules()
        if hasattr(module, "screening") and hasattr(module, "layer_idx")
    ]

    def watch(layer: int) -> Any:
        return lambda observation: counts.add(layer, observation)

    for layer, screening in screened:
        screening.observer, screening.observed_rows = watch(layer), rows
    try:
        yield counts
    finally:
        for _, screening in screened:
            screening.observer = screening.observed_rows = None
