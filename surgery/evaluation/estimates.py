"""Means with intervals, and what they say."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

Word = Literal["kept", "lost", "gained", "no difference", "undecided"]


@dataclass(frozen=True)
class Estimate:
    """A mean with its confidence interval; ``low`` and ``high`` are None where one sequence gives no interval."""

    value: float
    low: float | None
    high: float | None


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


def perplexity(loss: float) -> float:
    """exp(loss), kept finite so that it can be written to JSON."""
    return math.exp(min(loss, 700.0))
