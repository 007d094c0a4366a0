"""A model as it was measured, and the numbers that its operations hold."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Multiplier:
    """The factor m(n) on the queries at one n: ``values[layer][head]`` in the operation's order, and a summary."""

    n: int
    smallest: float
    median: float
    largest: float
    values: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class NegativeHead:
    """A head whose multiplier is negative for every n from ``first`` to ``last``: there it prefers what it disliked."""

    layer: int
    head: int
    first: int
    last: int


@dataclass(frozen=True)
class LearnedNumbers:
    """The numbers of one operation, as they are in the weights.

    Attributes:
        name, form: of the operation.
        reference_length: N of SSMax; None for others.
        layers, heads: those that were chosen.
        start: the value at which each parameter began in every head; none where a calibration gave them.
        values: ``[layer][head]`` of each parameter, in the order of ``layers`` and ``heads``; empty if there are none.
        moved_mean, moved_most: absolute distances from the start over all parameters that have one; None without any.
        multipliers, negative_heads: of SSMax.
    """

    name: str
    form: str
    reference_length: int | None
    layers: tuple[int, ...]
    heads: tuple[int, ...]
    start: dict[str, float]
    values: dict[str, tuple[tuple[float, ...], ...]]
    moved_mean: float | None
    moved_most: float | None
    multipliers: tuple[Multiplier, ...]
    negative_heads: tuple[NegativeHead, ...]


@dataclass(frozen=True)
class ModelUse:
    """One model as it was measured."""

    name: str
    fingerprint: str
    commit: str | None
    model_type: str
    parameters: int
    trained_length: int | None
    dtype: str
    device: str
    attn_implementation: str
    plan: str | None
    operations: tuple[str, ...]
    learned: tuple[LearnedNumbers, ...]
