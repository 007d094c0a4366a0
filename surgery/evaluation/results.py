"""What an evaluation returns: frozen values of plain numbers, strings and tuples, that go to JSON and back."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError

from surgery.errors import UsageError

RESULT_SCHEMA = 2

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
class Interval:
    """How the intervals were made."""

    method: str
    level: float
    samples: int
    seed: int


@dataclass(frozen=True)
class Finding:
    """What one section says of a model against its base: a word, and a sentence with the numbers."""

    measure: str
    word: Word
    sentence: str


@dataclass(frozen=True)
class Verdict:
    """The answer to "what did it do" to one model, over all sections.

    ``word`` is lost where anything was lost and nothing gained, gained where the reverse holds, mixed where both are;
    else kept, undecided, or no difference if every number is the same.
    """

    model: int
    word: Literal["kept", "lost", "gained", "mixed", "no difference", "undecided"]
    findings: tuple[Finding, ...]


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


@dataclass(frozen=True)
class Score:
    """Retrieval over some prompts: at one length, or over all (``length`` None).

    Attributes:
        length: tokens of prompt and answer.
        prompts: how many.
        exact: share of prompts with the whole answer right.
        right: share of the answers' tokens that are right; what the verdict is about.
        loss: of the right answer, nats per token.
        base_exact, base_right, base_loss: of the base.
        difference: of ``right``, model minus base, paired prompt by prompt; below zero the model is worse.
        verdict: what the difference and its interval say.
    """

    length: int | None
    prompts: int
    exact: Estimate
    right: Estimate
    loss: Estimate
    base_exact: Estimate | None = None
    base_right: Estimate | None = None
    base_loss: Estimate | None = None
    difference: Estimate | None = None
    verdict: Word | None = None


Grid = tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class RetrievalResult:
    """Retrieval of one model. Grids are ``[length][depth]``, means over the prompts of a cell."""

    model: int
    overall: Score
    by_length: tuple[Score, ...]
    exact: Grid
    right: Grid
    loss: Grid
    base_exact: Grid | None
    base_right: Grid | None
    base_loss: Grid | None
    finding: Finding | None


@dataclass(frozen=True)
class RetrievalSection:
    """One task of retrieval."""

    kind: Literal["retrieval"]
    title: str
    options: dict[str, Any]
    lengths: tuple[int, ...]
    depths: tuple[float, ...]
    prompts: int
    margin: float
    results: tuple[RetrievalResult, ...]


@dataclass(frozen=True)
class AttentionAt:
    """Means over all layers and heads for n from ``first`` to ``last``; ``low`` and ``high`` are tenths of heads."""

    first: int
    last: int
    greatest: float
    greatest_low: float
    greatest_high: float
    entropy: float
    first_mass: float


# [layer][head][range of n]; None where a layer has no query with such an n.
ByHead = tuple[tuple[tuple[float | None, ...], ...], ...]


@dataclass(frozen=True)
class AttentionResult:
    """Attention weights of one model; ``model`` is the number of models where it is the base.

    Attributes:
        model: which one.
        layers: by number.
        greatest, entropy, first_mass: means by layer, head and range.
        by_n: means over layers and heads.
        rejected_keys, rejected_blocks: share of keys, and of whole blocks, that screening rejects, ``[layer][head]``;
            a layer that does not screen has None, and without any it is None altogether.
    """

    model: int
    layers: tuple[int, ...]
    greatest: ByHead
    entropy: ByHead
    first_mass: ByHead
    by_n: tuple[AttentionAt, ...]
    rejected_keys: tuple[tuple[float, ...] | None, ...] | None
    rejected_blocks: tuple[tuple[float, ...] | None, ...] | None


@dataclass(frozen=True)
class AttentionSection:
    """How attention spreads; ``ranges`` are [first, last] of n."""

    kind: Literal["attention"]
    title: str
    options: dict[str, Any]
    data: DataUse
    ranges: tuple[tuple[int, int], ...]
    results: tuple[AttentionResult, ...]


@dataclass(frozen=True)
class TaskScore:
    """A metric of a task: ``task: metric,filter``; paired by example where the metric has a value for each."""

    metric: str
    value: float
    base_value: float | None
    examples: int | None
    difference: Estimate | None
    verdict: Word | None
    lower_is_better: bool


@dataclass(frozen=True)
class TasksResult:
    """All tasks of one model, and the plain lm-eval commands that give the same."""

    model: int
    scores: tuple[TaskScore, ...]
    commands: tuple[str, ...]
    finding: Finding | None


@dataclass(frozen=True)
class TasksSection:
    """Short tasks of lm-evaluation-harness."""

    kind: Literal["tasks"]
    title: str
    options: dict[str, Any]
    lm_eval: str
    results: tuple[TasksResult, ...]


@dataclass(frozen=True)
class SpeedCase:
    """Tokens per second; ``time_ratio`` is time over the base's, the median over turns: above 1 is slower."""

    case: str
    rate: float
    base_rate: float | None
    time_ratio: float | None


@dataclass(frozen=True)
class MemoryUse:
    """Bytes of one model: ``prefill`` is the most beside the weights, None where the system does not tell."""

    model: int
    tokens: int
    weights: int
    cache: int
    prefill: int | None


@dataclass(frozen=True)
class SpeedResult:
    """Speed and memory of one model, its base in the same turns."""

    model: int
    cases: tuple[SpeedCase, ...]
    memory: tuple[MemoryUse, ...]


@dataclass(frozen=True)
class SpeedSection:
    """How fast and how large; information, not part of the verdict."""

    kind: Literal["speed"]
    title: str
    options: dict[str, Any]
    results: tuple[SpeedResult, ...]


Section = Annotated[
    LossSection | RetrievalSection | AttentionSection | TasksSection | SpeedSection, Field(discriminator="kind")
]


@dataclass(frozen=True)
class EvaluationResult:
    """What a suite measured of some models, beside their base where one was given.

    Attributes:
        suite: its name.
        models: those that were evaluated.
        against: their base.
        verdicts: one for each model; none without a base.
        sections: what was measured, in the order of the suite.
        interval: how the intervals were made.
        environment: versions of what measured.
        warnings: what a reader must know.
        trainings: training runs that each model went through, by its fingerprint, each
            ``{"label": str, "rows": [{"step", "loss", ...}]}``.
    """

    suite: str
    models: tuple[ModelUse, ...]
    against: ModelUse | None
    verdicts: tuple[Verdict, ...]
    sections: tuple[Section, ...]
    interval: Interval
    environment: dict[str, str]
    warnings: tuple[str, ...]
    trainings: dict[str, list[dict[str, Any]]]

    def section(self, kind: str) -> Any:
        """The first section of a kind.

        Raises:
            KeyError: there is none.
        """
        for section in self.sections:
            if section.kind == kind:
                return section
        raise KeyError(kind)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data: dicts, lists, strings and finite numbers, with the schema version."""
        return {"result_schema": RESULT_SCHEMA, **_adapter().dump_python(self, mode="json")}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> EvaluationResult:
        """The inverse of :meth:`to_dict`; other keys (``schema``, ``kind``, ``provenance``) are ignored.

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
