"""Loss by position, and over whole documents."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter

from surgery.evaluation.data_use import DataUse
from surgery.evaluation.loss.buckets import check_edges, default_edges
from surgery.evaluation.loss.result import LossResult, LossSection
from surgery.evaluation.loss.sample import Sample, conclude
from surgery.evaluation.measure import Measurement

FEW_DOCUMENTS = 6


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
        f"Sliding window of {data.length:,} tokens, stride {part['stride']:,}"
        if sliding
        else f"Loss by position, to {data.longest:,} tokens"
    )
    return LossSection(
        kind=part["kind"],
        title=title,
        options=dict(part),
        data=data,
        margin=first["margin"],
        results=tuple(_result(number, own, base, data, title) for number, own in measurements),
    )


def loss_warnings(section: LossSection) -> list[str]:
    """Too few documents, and texts that the limit left out."""
    found = []
    data, sliding = section.data, section.kind == "sliding"
    documents = sum(1 for text in data.texts if text.sequences)
    if documents < FEW_DOCUMENTS:
        several = f"{documents} documents give intervals that are too narrow"
        found.append(f"{several if documents > 1 else 'One document gives no interval'}; measure more texts.")
    limit = section.options.get("documents")
    used = documents if sliding else data.sequences
    if used == limit and (data.left_out or data.unread):
        what = "text" if sliding else "sequence"
        asked = f"one {what} was" if limit == 1 else f"{limit} {what}s were"
        found.append(f"{section.title}: {asked} asked for; the texts are longer.")
    return found


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
