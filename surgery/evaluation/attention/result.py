"""How attention spreads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from surgery.evaluation.data_use import DataUse
from surgery.evaluation.estimates import ResultRow


@dataclass(frozen=True)
class AttentionAt:
    """Means over all layers and heads for n from ``first`` to ``last``.

    ``greatest_low`` and ``greatest_high`` are the quantiles 0.1 and 0.9 of the heads.
    """

    first: int
    last: int
    greatest: float
    greatest_low: float
    greatest_high: float
    entropy: float
    first_mass: float


# [layer][head][range of n]; None where a layer has no query with such an n.
ByHead = tuple[tuple[tuple[float | None, ...], ...], ...]


@dataclass(frozen=True)
class AttentionResult:
    """Attention weights of one model; ``model`` is the number of models where it is the base.

    Attributes:
        model: number of the model.
        layers: numbers of the layers.
        greatest, entropy, first_mass: means by layer, head and range.
        by_n: means over layers and heads.
        rejected_keys, rejected_blocks: share of keys, and of whole blocks, that an operation rejects,
            ``[layer][head]``; None for a layer where nothing can be rejected, and None if there is no other layer.
    """

    model: int
    layers: tuple[int, ...]
    greatest: ByHead
    entropy: ByHead
    first_mass: ByHead
    by_n: tuple[AttentionAt, ...]
    rejected_keys: tuple[tuple[float, ...] | None, ...] | None
    rejected_blocks: tuple[tuple[float, ...] | None, ...] | None


@dataclass(frozen=True)
class AttentionSection:
    """How attention spreads; ``ranges`` are [first, last] of n."""

    kind: Literal["attention"]
    title: str
    options: dict[str, Any]
    data: DataUse
    ranges: tuple[tuple[int, int], ...]
    results: tuple[AttentionResult, ...]

    def rows(self) -> list[ResultRow]:
        """The mean of the greatest weight in every range of n."""
        return [
            ResultRow(f"greatest attention weight, n {at.first:,} to {at.last:,}", own.model, at.greatest)
            for own in self.results
            for at in own.by_n
        ]
