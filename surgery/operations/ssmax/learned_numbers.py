"""The learned parameters of SSMax for reports: multipliers at some n, and heads where the multiplier is negative."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from surgery.operations.learned_numbers import (
    Array,
    LearnedNumbers,
    Multiplier,
    NegativeHead,
    parameter_values,
    read_numbers,
    rows,
)
from surgery.operations.ssmax.modeling.multiplier import PARAMETERS, multiplier

SHORT_CONTEXTS = (1, 16, 256)


def read_multipliers(
    modules: Sequence[Any],
    options: Mapping[str, Any],
    layers: tuple[int, ...],
    heads: tuple[int, ...],
    start: Mapping[str, float],
    length: int,
) -> LearnedNumbers:
    """Parameters, multipliers at some n, and the heads whose multiplier is negative for some n up to ``length``."""
    numbers = read_numbers(modules, options, layers, heads, start)
    reference = options["reference_length"]
    at = _multiplier(options["form"], modules, reference or 1, (len(layers), len(heads)))
    contexts = sorted({*SHORT_CONTEXTS, *((reference, 2 * reference) if reference else (length,))})
    return replace(
        numbers,
        reference_length=reference,
        multipliers=tuple(_summary(n, at(math.log(n))) for n in contexts),
        # Without learned parameters the multiplier is never below 1.
        negative_heads=_negative(at, layers, heads, length) if numbers.values else (),
    )


def _multiplier(form: str, modules: Sequence[Any], reference: int, shape: tuple[int, int]) -> Callable[[float], Array]:
    """m as a function of ln n, ``(layers, heads)``."""
    values = {name: torch.from_numpy(parameter_values(modules, name)) for name in PARAMETERS[form]}

    def at(log_n: float) -> Array:
        found = multiplier(form, torch.tensor(log_n, dtype=torch.float64), math.log(reference), **values)
        return found.expand(shape).numpy()

    return at


def _summary(n: int, values: Array) -> Multiplier:
    return Multiplier(n, float(values.min()), float(np.median(values)), float(values.max()), rows(values))


def _negative(
    at: Callable[[float], Array], layers: tuple[int, ...], heads: tuple[int, ...], length: int
) -> tuple[NegativeHead, ...]:
    """Heads with m(n) < 0 for some n up to ``length``. m is linear in ln n, so it crosses zero at most once."""
    at_one, slope = at(0.0), at(1.0) - at(0.0)
    at_end = at_one + slope * math.log(length)
    found = []
    for row, column in np.argwhere((at_one < 0) | (at_end < 0)):
        first, last = 1, length
        if at_one[row, column] * at_end[row, column] < 0:
            crossing = math.exp(-at_one[row, column] / slope[row, column])
            if at_one[row, column] < 0:
                last = max(1, math.ceil(crossing) - 1)
            else:
                first = math.floor(crossing) + 1
        elif at_one[row, column] == 0:  # paper's form at n = 1
            first = 2
        found.append(NegativeHead(layers[row], heads[column], first, last))
    return tuple(found)
