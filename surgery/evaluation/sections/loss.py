"""Loss by position, and over whole documents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter

from surgery.evaluation.results import DataUse, LossResult, LossSection
from surgery.evaluation.statistics import Sample, check_edges, conclude, default_edges

Measurement = Mapping[str, Any]


def loss_section(
    measurements: Sequence[tuple[int, Measurement]], base: Measurement | None, models: int
) -> LossSection | None:
    """Buckets, curve and paired differences; None where only the base was measured."""
    if not measurements:
        return None
    first = measurements[0][1]
    part = first["part"]
    data = TypeAdapter(DataUse).validate_python(first["data"])
    sliding = part["kind"] == "sliding"
    title = (
        f"Sliding window of {data.length} tokens, stride {part['stride']}"
        if sliding
        else f"Loss by position, to {data.longest} tokens"
    )
    return LossSection(
        kind=part["kind"],
        title=title,
        options=dict(part),
        data=data,
        margin=first["margin"],
        results=tuple(_result(number, own, base, data, title) for number, own in measurements),
    )


def _result(number: int, own: Measurement, base: Measurement | None, data: DataUse, title: str) -> LossResult:
    units = own["units"]
    sample = Sample(_losses(own), _losses(base) if base is not None else None, [unit["document"] for unit in units])
    margin, sliding = own["margin"], own["part"]["kind"] == "sliding"
    longest = data.longest - 1
    overall = sample.bucket(1, longest, margin)
    assert overall is not None
    buckets: tuple[Any, ...] = ()
    if not sliding:
        given = own["part"].get("buckets")
        edges = default_edges(data.longest) if given is None else check_edges(given, data.longest)
        starts = (1, *(edge + 1 for edge in edges))
        ranges = [(start, last) for start, last in zip(starts, edges, strict=False) if start <= last]
        buckets = tuple(bucket for start, last in ranges if (bucket := sample.bucket(start, last, margin)) is not None)
    return LossResult(
        model=number,
        overall=overall,
        buckets=buckets,
        curve=() if sliding else sample.curve(data.longest),
        finding=conclude(title, overall, buckets, margin) if base is not None else None,
    )


def _losses(measurement: Measurement) -> list[NDArray[np.float64]]:
    return [np.array(unit["losses"], dtype=np.float32).astype(np.float64) for unit in measurement["units"]]
