"""Retrieval by length and depth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from surgery.evaluation.estimates import Estimate, Finding, ResultRow, Word, paired_row


@dataclass(frozen=True)
class Score:
    """Retrieval over some prompts: at one length, or over all (``length`` None).

    Attributes:
        length: tokens of prompt and answer.
        prompts: number of prompts.
        exact: share of prompts with the whole answer right.
        right: share of right answer tokens; the verdict is about this share.
        loss: of the right answer, nats per token.
        log_probability: of the whole right answer, nats; it moves where no answer is right yet.
        base_exact, base_right, base_loss, base_log_probability: of the base.
        difference: of ``right``, model minus base, paired prompt by prompt; below zero the model is worse.
        log_probability_difference: of ``log_probability``, paired in the same way.
        verdict: on the difference and its interval.
    """

    length: int | None
    prompts: int
    exact: Estimate
    right: Estimate
    loss: Estimate
    log_probability: Estimate
    base_exact: Estimate | None = None
    base_right: Estimate | None = None
    base_loss: Estimate | None = None
    base_log_probability: Estimate | None = None
    difference: Estimate | None = None
    log_probability_difference: Estimate | None = None
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

    def rows(self) -> list[ResultRow]:
        """The share of right answer tokens at every length, and over all."""
        found = []
        for own in self.results:
            for score in (*own.by_length, own.overall):
                where = "all prompts" if score.length is None else f"{score.length:,} tokens"
                base = None if score.base_right is None else score.base_right.value
                what = f"{self.title}, right tokens, {where}"
                found.append(paired_row(what, own.model, score.right.value, base, score.difference, score.verdict))
        return found
