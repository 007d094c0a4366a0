"""Retrieval by length and depth."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from surgery.evaluation.estimates import Estimate, Finding, Word
from surgery.evaluation.measure import Measurement
from surgery.evaluation.retrieval.result import Grid, RetrievalResult, RetrievalSection, Score
from surgery.evaluation.statistics import Resampling, change_in_words, judge, why_undecided

Rows = Sequence[Mapping[str, Any]]

LOGS = "log_probability"

TITLES = {
    "abcdigits": "ABCDigits",
    "needle": "Needle in a haystack",
    "passkey": "Passkey",
    "induction": "Copying (induction)",
    "recall": "Recall (many facts in a text)",
}


def retrieval_section(
    measurements: Sequence[tuple[int, Measurement]], base: Measurement | None, models: int
) -> RetrievalSection | None:
    """Scores by length, grids by length and depth; None where only the base was measured."""
    if not measurements:
        return None
    part = measurements[0][1]["part"]
    return RetrievalSection(
        kind="retrieval",
        title=TITLES[part["task"]],
        options=dict(part),
        lengths=tuple(part["lengths"]),
        depths=tuple(part["depths"]),
        prompts=len(_rows(measurements[0][1])),
        margin=measurements[0][1]["score_margin"],
        results=tuple(_result(number, own, base) for number, own in measurements),
    )


def _result(number: int, own: Measurement, base: Measurement | None) -> RetrievalResult:
    part, margin = own["part"], own["score_margin"]
    rows = _rows(own)
    reference = _rows(base) if base is not None else None
    overall = _score(None, rows, reference, margin)
    by_length = tuple(
        _score(
            length,
            [row for row in rows if row["length"] == length],
            None if reference is None else [row for row in reference if row["length"] == length],
            margin,
        )
        for length in part["lengths"]
    )

    def grid(some: Rows | None, name: str) -> Grid | None:
        return None if some is None else _grid(some, part["lengths"], part["depths"], lambda row: row[name])

    exact, right, loss = (grid(rows, name) for name in ("exact", "right", "loss"))
    assert exact is not None and right is not None and loss is not None
    return RetrievalResult(
        model=number,
        overall=overall,
        by_length=by_length,
        exact=exact,
        right=right,
        loss=loss,
        base_exact=grid(reference, "exact"),
        base_right=grid(reference, "right"),
        base_loss=grid(reference, "loss"),
        finding=_finding(TITLES[part["task"]], overall, len({row["group"] for row in rows}), margin)
        if base is not None
        else None,
    )


def _rows(measurement: Measurement) -> Rows:
    """One row for each answer, with the haystack or prompt that it belongs to."""
    return [
        {**row, "group": number}
        for number, unit in enumerate(measurement["units"])
        for row in unit.get("answers", (unit,))
    ]


def _grid(rows: Rows, lengths: Sequence[int], depths: Sequence[float], value: Callable[[Any], float]) -> Grid:
    cells: dict[tuple[int, float], list[float]] = {}
    for row in rows:
        cells.setdefault((row["length"], row["depth"]), []).append(value(row))
    return tuple(tuple(float(np.mean(cells[length, depth])) for depth in depths) for length in lengths)


def _score(length: int | None, rows: Rows, reference: Rows | None, margin: float) -> Score:
    # Prompts of one haystack are not independent; other prompts are groups of one.
    resampling = Resampling([row["group"] for row in rows])
    ones = np.ones(len(rows))

    def mean(some: Rows, name: str) -> Estimate:
        return resampling.mean(np.array([float(row[name]) for row in some]), ones)

    score = Score(length, len(rows), mean(rows, "exact"), mean(rows, "right"), mean(rows, "loss"), mean(rows, LOGS))
    if reference is None:
        return score
    pairs = list(zip(rows, reference, strict=True))

    def change(name: str) -> Estimate:
        return resampling.mean(np.array([own[name] - other[name] for own, other in pairs]), ones)

    difference = change("right")
    same = all(own["right"] == other["right"] and own["loss"] == other["loss"] for own, other in pairs)
    none = not any(row["right"] for row in (*rows, *reference))
    word: Word = "undecided" if none else judge(difference, margin, more_is_better=True, groups=resampling.size)
    return replace(
        score,
        base_exact=mean(reference, "exact"),
        base_right=mean(reference, "right"),
        base_loss=mean(reference, "loss"),
        base_log_probability=mean(reference, LOGS),
        difference=difference,
        log_probability_difference=change(LOGS),
        verdict="no difference" if same else word,
    )


def _finding(title: str, overall: Score, groups: int, margin: float) -> Finding:
    assert overall.difference is not None and overall.verdict is not None
    assert overall.base_right is not None and overall.base_exact is not None
    assert overall.base_log_probability is not None and overall.log_probability_difference is not None
    if overall.verdict == "no difference":
        return Finding(title, "no difference", "Every answer and its loss are exactly the same in both models.")
    if not overall.right.value and not overall.base_right.value:
        return Finding(
            title,
            "undecided",
            "Neither model gives a right answer token, so nothing could be lost here. Log-probability of an answer: "
            f"{overall.log_probability.value:.2f}, base {overall.base_log_probability.value:.2f}; it changed by "
            f"{change_in_words(overall.log_probability_difference)}.",
        )
    sentence = (
        f"{overall.right.value:.1%} of the answer tokens are right, {overall.base_right.value:.1%} in the base; the "
        f"share changed by {change_in_words(overall.difference)}. Whole answers: {overall.exact.value:.1%}, base "
        f"{overall.base_exact.value:.1%}. Log-probability of an answer: {overall.log_probability.value:.2f}, base "
        f"{overall.base_log_probability.value:.2f}; it changed by "
        f"{change_in_words(overall.log_probability_difference)}."
    )
    sentence += {
        "kept": f" This is within the margin of ±{margin:g} that counts as kept.",
        "undecided": f" Undecided: {why_undecided(overall.difference, groups, 'prompt', margin)}",
    }.get(overall.verdict, "")
    return Finding(title, overall.verdict, sentence)
