"""Loss by position, and the texts it was measured on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from surgery.evaluation.results.estimates import Estimate, Finding, Word


@dataclass(frozen=True)
class Bucket:
    """Next-token loss, in nats per token, of the predictions that see ``first`` to ``last`` tokens (inclusive).

    Attributes:
        first: fewest tokens that a prediction in this bucket sees.
        last: most tokens that a prediction in this bucket sees.
        tokens: predictions measured.
        sequences: sequences that reach into the bucket.
        documents: documents that they come from.
        loss: of the model.
        perplexity: exp of the model's mean loss.
        base_loss: of the base, on the same tokens.
        base_perplexity: exp of the base's mean loss.
        difference: model minus base, paired token by token; above zero the model is worse.
        verdict: what the difference and its interval say.
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
class TextUse:
    """What was taken of one text."""

    name: str
    tokens: int
    sequences: int
    left_out: int


@dataclass(frozen=True)
class DataUse:
    """The measured tokens.

    Attributes:
        length: tokens per sequence asked for.
        longest: tokens of the longest sequence.
        shortest: sequences of fewer tokens are not measured.
        sequences: how many were measured.
        predictions: how many next-token predictions were measured.
        left_out: tokens of the texts read that were not measured (short tails, sequences beyond the limit).
        unread: texts that were not tokenized, since the limit on sequences was reached before.
        prefix: special tokens put before each sequence, as the tokenizer does by default.
        fingerprint: sha256 of the measured token ids; equal fingerprints are equal measurements.
        texts: each text that was read.
    """

    length: int
    longest: int
    shortest: int
    sequences: int
    predictions: int
    left_out: int
    unread: int
    prefix: tuple[int, ...]
    fingerprint: str
    texts: tuple[TextUse, ...]


@dataclass(frozen=True)
class LossResult:
    """Loss by position of one model; what concerns its base is in the buckets. ``model`` counts from 0."""

    model: int
    overall: Bucket
    buckets: tuple[Bucket, ...]
    curve: tuple[CurvePoint, ...]
    finding: Finding | None


@dataclass(frozen=True)
class LossSection:
    """Loss by position (``loss``), or over whole documents by a window that slides (``sliding``)."""

    kind: Literal["loss", "sliding"]
    title: str
    options: dict[str, Any]
    data: DataUse
    margin: float
    results: tuple[LossResult, ...]
