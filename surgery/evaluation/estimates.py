"""Means with intervals, and the verdicts on them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

Word = Literal["kept", "lost", "gained", "no difference", "undecided"]


@dataclass(frozen=True)
class Estimate:
    """A mean with its confidence interval; ``low`` and ``high`` are None where there is one group only."""

    value: float
    low: float | None
    high: float | None


class ResultRow(NamedTuple):
    """One measured number, as a row of a table.

    ``model`` is the number of the model; of a base that is measured alone, the number of models. ``low`` and ``high``
    are the interval of the difference, model minus base.
    """

    what: str
    model: int
    value: float | None
    base: float | None = None
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    verdict: str | None = None


def paired_row(
    what: str, model: int, value: float, base: float | None, difference: Estimate | None, verdict: str | None
) -> ResultRow:
    """A row with the interval of a paired difference."""
    if difference is None:
        return ResultRow(what, model, value, base)
    return ResultRow(what, model, value, base, difference.value, difference.low, difference.high, verdict)


@dataclass(frozen=True)
class Interval:
    """How the intervals were computed."""

    method: str
    level: float
    samples: int
    seed: int


@dataclass(frozen=True)
class Finding:
    """The finding of one section on a model and its base: a word, and a sentence with the numbers."""

    measure: str
    word: Word
    sentence: str


@dataclass(frozen=True)
class Verdict:
    """The verdict on one model over all sections.

    ``word`` is lost if a section lost and none gained, gained in the reverse case, mixed if both occur; else kept,
    undecided, or no difference if every number is the same.
    """

    model: int
    word: Literal["kept", "lost", "gained", "mixed", "no difference", "undecided"]
    findings: tuple[Finding, ...]


def perplexity(loss: float) -> float:
    """exp(loss), limited to a finite number, as JSON needs."""
    return math.exp(min(loss, 700.0))
