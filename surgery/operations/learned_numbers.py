"""The learned parameters of an operation as plain values, for reports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


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
    """A head whose multiplier is negative for every n from ``first`` to ``last``: it prefers its worst keys."""

    layer: int
    head: int
    first: int
    last: int


@dataclass(frozen=True)
class LearnedNumbers:
    """The learned parameters of one operation, as they are in the weights.

    Attributes:
        name, form: of the operation.
        reference_length: the length N that the operation refers to; None where it has none.
        layers, heads: numbers of the chosen layers and heads.
        start: the value at which each parameter began in every head; empty where a calibration chose the values.
        values: ``[layer][head]`` of each parameter, in the order of ``layers`` and ``heads``; empty if there are none.
        moved_mean, moved_most: absolute distances from the start over all parameters that have one; None without any.
        multipliers, negative_heads: of an operation that multiplies the query; empty for others.
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


def read_numbers(
    modules: Sequence[Any],
    options: Mapping[str, Any],
    layers: tuple[int, ...],
    heads: tuple[int, ...],
    start: Mapping[str, float],
) -> LearnedNumbers:
    """The values of every parameter of the modules, and how far they moved from where they started.

    Args:
        modules: of each layer.
        options: of the operation, as in config.json.
        layers, heads: numbers of the chosen ones.
        start: the value at which each parameter began in every head.
    """
    # As float32 parameters hold them: 0.1 is another number there, and has not moved for that.
    begun = {name: float(np.float32(value)) for name, value in start.items()}
    names = [name for name, _ in modules[0].named_parameters(recurse=False)]
    found = {name: parameter_values(modules, name) for name in names}
    moved = [np.abs(values - begun[name]).ravel() for name, values in found.items() if name in begun]
    distances = np.concatenate(moved) if moved else None
    return LearnedNumbers(
        name=options["name"],
        form=options["form"],
        reference_length=None,
        layers=layers,
        heads=heads,
        start=begun,
        values={name: rows(values) for name, values in found.items()},
        moved_mean=None if distances is None else float(distances.mean()),
        moved_most=None if distances is None else float(distances.max()),
        multipliers=(),
        negative_heads=(),
    )


def parameter_values(modules: Sequence[Any], name: str) -> Array:
    """A parameter of all layers, ``(layers, heads)``."""
    return np.stack([getattr(module, name).detach().double().cpu().numpy() for module in modules])


def rows(values: Array) -> tuple[tuple[float, ...], ...]:
    """``(layers, heads)`` as nested tuples."""
    return tuple(tuple(float(value) for value in row) for row in values)
