"""The numbers that an operation learned, read off a loaded model."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from surgery.evaluation.results import LearnedNumbers, Multiplier, NegativeHead

Array = NDArray[np.float64]

SHORT_CONTEXTS = (1, 16, 256)


def learned_numbers(model: Any, length: int) -> tuple[LearnedNumbers, ...]:
    """The numbers of each operation in ``model.config.surgery`` that has any form of them; none for a plain model.

    Args:
        model: a loaded causal language model.
        length: up to which n heads are searched for a negative multiplier.
    """
    block = getattr(model.config, "surgery", None) or {}
    readers = {"ssmax": _ssmax, "screening": _screening}
    found = []
    for options in block.get("operations", ()):
        if options["name"] in readers:
            layers = tuple(options["layers"])
            places = [f"{block['attention'].format(layer=layer)}.{options['name']}" for layer in layers]
            modules = [model.base_model.get_submodule(place) for place in places]
            chosen = options.get("heads")
            heads = tuple(chosen) if chosen is not None else tuple(range(modules[0].num_heads))
            found.append(readers[options["name"]](modules, options, layers, heads, length))
    return tuple(found)


def _ssmax(
    modules: list[Any], options: dict[str, Any], layers: tuple[int, ...], heads: tuple[int, ...], length: int
) -> LearnedNumbers:
    found = {name: values for name in ("scale", "bias") if (values := _matrix(modules, name)).size}
    start = _as_held(options.get("start"))
    moved_mean, moved_most = _moved(found, start)
    reference = int(options["reference_length"])
    nothing = np.zeros((0, 0))
    scale, bias = found.get("scale", nothing), found.get("bias", nothing)
    evaluate = _multiplier(options["form"], scale, bias, reference, (len(layers), len(heads)))
    contexts = sorted({*SHORT_CONTEXTS, reference, 2 * reference})
    return LearnedNumbers(
        name="ssmax",
        form=options["form"],
        reference_length=reference,
        layers=layers,
        heads=heads,
        start=start,
        values={name: _rows(values) for name, values in found.items()},
        moved_mean=moved_mean,
        moved_most=moved_most,
        multipliers=tuple(_at(n, evaluate(math.log(n))) for n in contexts),
        negative_heads=_negative(evaluate, layers, heads, length) if scale.size else (),
    )


def _screening(
    modules: list[Any], options: dict[str, Any], layers: tuple[int, ...], heads: tuple[int, ...], length: int
) -> LearnedNumbers:
    """Threshold, softness and log2 of the window. Where a calibration chose them, no single start tells anything."""
    calibrated = options.get("calibration") is not None
    start = {} if calibrated else _as_held(options.get("start"))
    names = [name for name, _ in modules[0].named_parameters(recurse=False)]
    found = {name: _matrix(modules, name) for name in names}
    moved_mean, moved_most = _moved(found, start)
    return LearnedNumbers(
        name="screening",
        form=options["form"],
        reference_length=None,
        layers=layers,
        heads=heads,
        start=start,
        values={name: _rows(values) for name, values in found.items()},
        moved_mean=moved_mean,
        moved_most=moved_most,
        multipliers=(),
        negative_heads=(),
    )


def _moved(found: dict[str, Array], start: dict[str, float]) -> tuple[float | None, float | None]:
    """Mean and greatest distance of the values from where they started; None where no start is known."""
    moved = [np.abs(values - start[name]).ravel() for name, values in found.items() if name in start]
    if not moved:
        return None, None
    distances = np.concatenate(moved)
    return float(distances.mean()), float(distances.max())


def _as_held(start: dict[str, float] | None) -> dict[str, float]:
    """Start values as float32 parameters hold them: 0.1 is not 0.1 there, and has not moved for that."""
    return {name: float(np.float32(value)) for name, value in (start or {}).items()}


def _matrix(modules: list[Any], name: str) -> Array:
    values = [getattr(module, name).detach().double().cpu().numpy() for module in modules if hasattr(module, name)]
    return np.stack(values) if values else np.zeros((0, 0))


def _multiplier(
    form: str, scale: Array, bias: Array, reference: int, shape: tuple[int, int]
) -> Callable[[float], Array]:
    """m as a function of ln n, ``(layers, heads)``; the forms are those of the modelling file."""
    forms: dict[str, Callable[[float], Array]] = {
        "paper": lambda log_n: scale * log_n,
        "bias": lambda log_n: scale * log_n + bias,
        "anchored": lambda log_n: 1.0 + scale * (log_n - math.log(reference)),
        "logn": lambda log_n: np.full(shape, max(1.0, log_n / math.log(reference))),
    }
    return forms[form]


def _at(n: int, values: Array) -> Multiplier:
    return Multiplier(n, float(values.min()), float(np.median(values)), float(values.max()), _rows(values))


def _negative(
    evaluate: Callable[[float], Array], layers: tuple[int, ...], heads: tuple[int, ...], length: int
) -> tuple[NegativeHead, ...]:
    """Heads with m(n) < 0 for some n up to ``length``. m is linear in ln n, so it crosses zero at most once."""
    at_one, slope = evaluate(0.0), evaluate(1.0) - evaluate(0.0)
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


def _rows(values: Array) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(float(value) for value in row) for row in values)
