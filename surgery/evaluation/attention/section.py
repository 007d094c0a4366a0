"""How attention spreads by layer, head and n."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter

from surgery.evaluation.attention.result import AttentionAt, AttentionResult, AttentionSection, ByHead
from surgery.evaluation.data_use import DataUse
from surgery.evaluation.measure import Measurement


def attention_section(
    measurements: Sequence[tuple[int, Measurement]], base: Measurement | None, models: int
) -> AttentionSection | None:
    """Means over documents, the base as one more model; None where nothing was measured."""
    every = [*measurements, *([(models, base)] if base is not None else [])]
    if not every:
        return None
    first = every[0][1]
    ranges = sorted({tuple(one) for unit in first["units"] for one in unit["ranges"]})
    return AttentionSection(
        kind="attention",
        title="Attention weights by n",
        options=dict(first["part"]),
        data=TypeAdapter(DataUse).validate_python(first["data"]),
        ranges=tuple(ranges),
        results=tuple(_result(number, own["units"], ranges) for number, own in every),
    )


def _result(number: int, units: Sequence[Mapping[str, Any]], ranges: Sequence[tuple[int, ...]]) -> AttentionResult:
    values = {name: _mean(units, name, ranges) for name in ("greatest", "entropy", "first")}
    with np.errstate(all="ignore"):
        flat = {name: found.reshape(-1, found.shape[-1]) for name, found in values.items()}
        by_n = tuple(
            AttentionAt(
                first=int(first),
                last=int(last),
                greatest=float(np.nanmean(flat["greatest"][:, place])),
                greatest_low=float(np.nanquantile(flat["greatest"][:, place], 0.1)),
                greatest_high=float(np.nanquantile(flat["greatest"][:, place], 0.9)),
                entropy=float(np.nanmean(flat["entropy"][:, place])),
                first_mass=float(np.nanmean(flat["first"][:, place])),
            )
            for place, (first, last) in enumerate(ranges)
        )
    return AttentionResult(
        model=number,
        layers=tuple(units[0]["layers"]),
        greatest=_nested(values["greatest"]),
        entropy=_nested(values["entropy"]),
        first_mass=_nested(values["first"]),
        by_n=by_n,
        rejected_keys=_rejected(units, "rejected_keys"),
        rejected_blocks=_rejected(units, "rejected_blocks"),
    )


def _mean(units: Sequence[Mapping[str, Any]], name: str, ranges: Sequence[tuple[int, ...]]) -> NDArray[np.float64]:
    """``(layers, heads, ranges)``, each document by its rows; NaN where a layer has none."""
    place = {one: number for number, one in enumerate(ranges)}
    shape = np.shape(units[0][name])
    sums, counts = np.zeros((*shape[:2], len(ranges))), np.zeros((*shape[:2], len(ranges)))
    for unit in units:
        values = np.array(unit[name], dtype=np.float64)  # None becomes NaN
        where = [place[tuple(one)] for one in unit["ranges"]]
        rows = np.where(np.isnan(values), 0, np.array(unit["rows"], dtype=np.float64)[:, None])
        sums[..., where] += np.nan_to_num(values) * rows
        counts[..., where] += rows
    with np.errstate(invalid="ignore"):
        return np.where(counts > 0, sums / counts, np.nan)


def _nested(values: NDArray[np.float64]) -> ByHead:
    return tuple(
        tuple(tuple(None if np.isnan(value) else float(value) for value in head) for head in layer) for layer in values
    )


def _rejected(units: Sequence[Mapping[str, Any]], name: str) -> tuple[tuple[float, ...] | None, ...] | None:
    """Means over documents of each layer where an operation rejects keys."""
    layers = range(len(units[0]["layers"]))
    if all(units[0][name][layer] is None for layer in layers):
        return None
    return tuple(
        None
        if units[0][name][layer] is None
        else tuple(float(value) for value in np.mean([unit[name][layer] for unit in units], axis=0))
        for layer in layers
    )
