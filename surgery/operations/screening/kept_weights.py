"""The attention weights of the keys that screening keeps, block by block while a model runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from surgery.operations.measured import ObservedRows


@contextmanager
def observed_weights(module: Any, show: Callable[[ObservedRows], None]) -> Iterator[None]:
    """Show every block of queries of one layer.

    Args:
        module: the layer's screening.
        show: called with each block.
    """
    module.observer = lambda observation: show(_rows(module, observation))
    try:
        yield
    finally:
        module.observer = None


def _rows(module: Any, observation: Any) -> ObservedRows:
    """One block as the travelling code shows it: weights before any key is rejected, and acceptance."""
    allowed = observation.allowed[0, 0].expand(observation.weights.shape[2], -1)
    kept = observation.acceptance[0] * allowed
    weights = observation.weights[0].float()
    if module.kind() == "gated":
        weights_kept = weights * kept
        # The rest up to one went to a sink that the family has learned; it stays in the sum.
        total = weights_kept.sum(-1, keepdim=True) + (1 - weights.sum(-1, keepdim=True)).clamp(min=0)
    else:
        # The weights of a unit have any sum: the share of each key in it is what can be compared.
        weights_kept = observation.kept[0].float() * allowed
        total = weights_kept.sum(-1, keepdim=True)
    return ObservedRows(weights_kept / total.clamp(min=1e-30), allowed, kept > 0)
