"""Loss by position."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from surgery.evaluation.data_use import DataUse
from surgery.evaluation.estimates import Estimate, Finding, ResultRow, Word, paired_row


@dataclass(frozen=True)
class Bucket:
    """Next-token loss, in nats per token, of the predictions that see ``first`` to ``last`` tokens (inclusive).

    Attributes:
        first: fewest tokens that a prediction in this bucket sees.
        last: most tokens that a prediction in this bucket sees.
        tokens: predictions measured.
        sequences: sequences with predictions in the bucket.
        documents: documents of these sequences.
        loss: of the model.
        perplexity: exp of the model's mean loss.
        base_loss: of the base, on the same tokens.
        base_perplexity: exp of the base's mean loss.
        difference: model minus base, paired token by token; above zero the model is worse.
        verdict: on the difference and its interval.
    """

    first: int
    last: int
    tokens: int
    sequences: int
    documents: int
    loss: Estimate
    perplexity: float
    base_loss: Estimate | None = None
    base_perplexity: float | None = None
    difference: Estimate | None = None
    verdict: Word | None = None


@dataclass(frozen=True)
class CurvePoint:
    """Mean losses over a narrow range of positions; for drawing, hence without an interval."""

    first: int
    last: int
    tokens: int
    loss: float
    base_loss: float | None = None


@dataclass(frozen=True)
class LossResult:
    """Loss by position of one model, and of its base in the buckets. ``model`` counts from 0."""

    model: int
    overall: Bucket
    buckets: tuple[Bucket, ...]
    curve: tuple[CurvePoint, ...]
    finding: Finding | None


@dataclass(frozen=True)
class LossSection:
    """Loss by position (``loss``), or over whole documents with a sliding window (``sliding``)."""

    kind: Literal["loss", "sliding"]
    title: str
    options: dict[str, Any]
    data: DataUse
    margin: float
    results: tuple[LossResult, ...]

    def rows(self) -> list[ResultRow]:
        """The loss of every bucket, and of all tokens."""
        found = []
        for own in self.results:
            for bucket in (*own.buckets, own.overall):
                seen = "all tokens" if bucket is own.overall else f"{bucket.first:,} to {bucket.last:,} tokens seen"
                base = None if bucket.base_loss is None else bucket.base_loss.value
                what = f"{self.kind}, {seen}"
                found.append(paired_row(what, own.model, bucket.loss.value, base, bucket.difference, bucket.verdict))
        return found
