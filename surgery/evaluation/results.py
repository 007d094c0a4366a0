"""What an evaluation returns: frozen values of plain numbers, strings and tuples, that go to JSON and back."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from surgery.errors import UsageError

RESULT_SCHEMA = 1

Word = Literal["kept", "lost", "gained", "no difference", "undecided"]


@dataclass(frozen=True)
class Estimate:
    """A mean with its confidence interval; ``low`` and ``high`` are None where one sequence gives no interval."""

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Bucket:
    """Next-token loss, in nats per token, of the predictions that see ``first`` to ``last`` tokens (inclusive).

    Attributes:
        first: fewest tokens that a prediction in this bucket sees.
        last: most tokens that a prediction in this bucket sees.
        tokens: predictions measured.
        sequences: sequences that reach into the bucket.
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
class Interval:
    """How the intervals were made."""

    method: str
    level: float
    samples: int
    seed: int


@dataclass(frozen=True)
class Verdict:
    """The answer to "what did it do": kept, lost, gained, no difference or undecided, and a sentence with numbers.

    ``margin`` is the change, in nats per token, that still counts as kept.
    """

    word: Word
    sentence: str
    margin: float


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
    """The learned numbers of one SSMax operation.

    ``scale`` and ``bias`` are ``[layer][head]``, in the order of ``layers`` and ``heads``; empty if the form has none.
    ``moved_mean`` and ``moved_most`` are absolute distances from the start value, over all scales and biases.
    """

    name: str
    form: str
    reference_length: int
    layers: tuple[int, ...]
    heads: tuple[int, ...]
    start: dict[str, float]
    scale: tuple[tuple[float, ...], ...]
    bias: tuple[tuple[float, ...], ...]
    moved_mean: float
    moved_most: float
    multipliers: tuple[Multiplier, ...]
    negative_heads: tuple[NegativeHead, ...]


@dataclass(frozen=True)
class ModelUse:
    """One model as it was measured. ``tokens_per_second`` is information: forward passes and losses, first included."""

    name: str
    commit: str | None
    model_type: str
    parameters: int
    trained_length: int | None
    dtype: str
    device: str
    attn_implementation: str
    tokens_per_second: float
    seconds: float
    plan: str | None
    operations: tuple[str, ...]
    learned: tuple[LearnedNumbers, ...]


@dataclass(frozen=True)
class EvaluationResult:
    """Loss by position of a model, beside its base where one was given, with what it took to measure it."""

    model: ModelUse
    against: ModelUse | None
    data: DataUse
    overall: Bucket
    buckets: tuple[Bucket, ...]
    curve: tuple[CurvePoint, ...]
    interval: Interval
    verdict: Verdict | None
    warnings: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data: dicts, lists, strings and finite numbers, with the schema version."""
        return {"result_schema": RESULT_SCHEMA, **_adapter().dump_python(self, mode="json")}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> EvaluationResult:
        """The inverse of :meth:`to_dict`; other keys (``schema``, ``kind``) are ignored.

        Raises:
            UsageError: the data are no evaluation result, or one of a newer schema.
        """
        version = data.get("result_schema")
        if version != RESULT_SCHEMA:
            raise UsageError(
                f"result_schema is {json.dumps(version)}; this version reads {RESULT_SCHEMA}.",
                hint="Give an evaluation.json, or install the version of `surgery` that wrote it.",
            )
        try:
            return _adapter().validate_python(data)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise UsageError(f"not an evaluation result: {where}: {first['msg']}") from error


@cache
def _adapter() -> TypeAdapter[EvaluationResult]:
    return TypeAdapter(EvaluationResult)


def perplexity(loss: float) -> float:
    """exp(loss), kept finite so that it can be written to JSON."""
    return math.exp(min(loss, 700.0))
