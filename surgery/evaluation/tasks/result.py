"""Short tasks of lm-evaluation-harness."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from surgery.evaluation.estimates import Estimate, Finding, ResultRow, Word, paired_row


@dataclass(frozen=True)
class TaskScore:
    """A metric of a task: ``task: metric,filter``; paired by example if the metric has a value for each example."""

    metric: str
    value: float
    base_value: float | None
    examples: int | None
    difference: Estimate | None
    verdict: Word | None
    lower_is_better: bool


@dataclass(frozen=True)
class TasksResult:
    """All tasks of one model, and the lm-eval commands that give the same scores."""

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

    def rows(self) -> list[ResultRow]:
        """Every metric of every task."""
        return [
            paired_row(score.metric, own.model, score.value, score.base_value, score.difference, score.verdict)
            for own in self.results
            for score in own.scores
        ]
