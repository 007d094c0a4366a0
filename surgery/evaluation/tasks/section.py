"""Tasks of lm-evaluation-harness, paired example by example."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from surgery.evaluation.estimates import Estimate, Finding, Word
from surgery.evaluation.measure import Measurement
from surgery.evaluation.statistics import Resampling, change_in_words, judge, why_undecided
from surgery.evaluation.tasks.result import TaskScore, TasksResult, TasksSection


def tasks_section(
    measurements: Sequence[tuple[int, Measurement]], base: Measurement | None, models: int
) -> TasksSection | None:
    """Every metric of every task; None where only the base was measured."""
    if not measurements:
        return None
    first = measurements[0][1]
    return TasksSection(
        kind="tasks",
        title="Short tasks (lm-evaluation-harness)",
        options=dict(first["part"]),
        lm_eval=first["data"]["lm_eval"],
        results=tuple(_result(number, own, base) for number, own in measurements),
    )


def _result(number: int, own: Measurement, base: Measurement | None) -> TasksResult:
    margin = own["score_margin"]
    before = {unit["task"]: unit for unit in base["units"]} if base is not None else {}
    scores: list[TaskScore] = []
    leading: list[tuple[dict[str, float], dict[str, float]]] = []
    for unit in own["units"]:
        other = before.get(unit["task"])
        first = True
        for metric, value in unit["metrics"].items():
            lower = metric.partition(",")[0] in unit["lower_is_better"]
            samples = unit["samples"].get(metric)
            reference = other["samples"].get(metric) if other is not None else None
            difference, verdict = None, None
            if samples and reference:
                difference, verdict = _paired(samples, reference, margin, lower)
                if first and not lower:
                    leading.append((samples, reference))
                    first = False
            scores.append(
                TaskScore(
                    metric=metric,
                    value=value,
                    base_value=other["metrics"].get(metric) if other is not None else None,
                    examples=len(samples) if samples else None,
                    difference=difference,
                    verdict=verdict,
                    lower_is_better=lower,
                )
            )
    return TasksResult(
        model=number,
        scores=tuple(scores),
        commands=tuple(unit["command"] for unit in own["units"]),
        finding=_finding(leading, margin) if leading else None,
    )


def _paired(
    own: Mapping[str, float], base: Mapping[str, float], margin: float, lower_is_better: bool
) -> tuple[Estimate, Word]:
    names = [name for name in own if name in base]
    changes = np.array([own[name] - base[name] for name in names])
    difference = Resampling(range(len(names))).mean(changes, np.ones(len(names)))
    if not changes.any():
        return difference, "no difference"
    return difference, judge(difference, margin, more_is_better=not lower_is_better, groups=len(names))


def _finding(leading: Sequence[tuple[dict[str, float], dict[str, float]]], margin: float) -> Finding:
    """The first metric of every task, over all examples together."""
    own = {f"{number}/{name}": value for number, (one, _) in enumerate(leading) for name, value in one.items()}
    base = {f"{number}/{name}": value for number, (_, one) in enumerate(leading) for name, value in one.items()}
    difference, word = _paired(own, base, margin, False)
    title = f"{len(leading)} short task{'s' if len(leading) > 1 else ''}"
    if word == "no difference":
        return Finding(title, word, f"Both models have the same score on each of {len(own)} examples.")
    sentence = f"The first score of each task changed by {change_in_words(difference)} over {len(own)} examples."
    sentence += {
        "kept": f" This is within the margin of ±{margin:g} that counts as kept.",
        "undecided": f" Undecided: {why_undecided(difference, len(own), 'example', margin)}",
    }.get(word, "")
    return Finding(title, word, sentence)
