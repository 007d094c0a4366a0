"""Measure the candidates of a trial on text that no calibration saw, against the source and against their controls."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from surgery.evaluation.estimates import Estimate
from surgery.loading import RunOptions

if TYPE_CHECKING:
    from surgery.evaluation import EvaluationResult
from surgery.trial.plan import DEPTHS, TrialPlan, facts_in

OnProgress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class PairedDifference:
    """A mean of a model and of another one, and their paired difference with its interval of 95%.

    Attributes:
        value, other: the means.
        change: the difference, model minus other.
        low, high: of its interval, which resamples whole texts or haystacks; None where there is one only.
        groups: the number of texts or haystacks.
    """

    value: float
    other: float
    change: float
    low: float | None
    high: float | None
    groups: int

    @property
    def estimate(self) -> Estimate:
        """The difference."""
        return Estimate(self.change, self.low, self.high)


@dataclass(frozen=True)
class TrialComparison:
    """A model against another one at one length.

    Attributes:
        model, other: their names.
        tokens: the length.
        loss: of text, in nats per token.
        answers: log-probability of a whole answer, in nats.
        right, other_right: shares of the answers whose every token is right.
    """

    model: str
    other: str
    tokens: int
    loss: PairedDifference
    answers: PairedDifference
    right: float
    other_right: float

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def suite_of(plan: TrialPlan) -> dict[str, Any]:
    """Loss and recall at each length."""
    parts: list[dict[str, Any]] = []
    for length in plan.lengths:
        parts.append({"kind": "loss", "length": length, "documents": plan.effort.samples})
        recall = {
            "lengths": [length],
            "depths": list(DEPTHS),
            "samples": plan.effort.samples,
            "needles": facts_in(length),
        }
        parts.append({"kind": "retrieval", "task": "recall", **recall})
    return {"name": "trial", "parts": parts}


def measure(
    models: Mapping[str, Path],
    other: str,
    plan: TrialPlan,
    texts: Path,
    results: Path,
    run: RunOptions,
    on_progress: OnProgress | None,
) -> list[TrialComparison]:
    """Each model against another one at each length; finished measurements are read and not repeated.

    Args:
        models: by name, the other one among them.
        other: its name.
        plan: of the trial.
        texts: to measure on.
        results: folder of finished measurements.
        run: device, dtype and attention backend.
        on_progress: called with finished work and all work, in tokens, and what is measured.
    """

    def on_event(event: dict[str, Any]) -> None:
        if on_progress is not None and event["event"] == "tokens":
            on_progress(event["done"], event["total"], f"{event['kind']} of {event['model']}")

    from surgery.evaluation import evaluate  # torch

    own = [path for name, path in models.items() if name != other]
    found = evaluate(
        own, against=models[other], text=texts, suite=suite_of(plan), results=results, run=run, on_event=on_event
    )
    names = {path.name: name for name, path in models.items()}
    return [
        comparison
        for length in plan.lengths
        for comparison in _comparisons(found, [names[use.name] for use in found.models], other, length, plan)
    ]


def _comparisons(
    found: EvaluationResult, names: Sequence[str], other: str, length: int, plan: TrialPlan
) -> list[TrialComparison]:
    losses = next(one for one in found.sections if one.kind == "loss" and one.options["length"] == length)
    recalls = next(one for one in found.sections if one.kind == "retrieval" and one.lengths == (length,))
    compared = []
    for loss, recall in zip(losses.results, recalls.results, strict=True):
        total, score = loss.overall, recall.overall
        compared.append(
            TrialComparison(
                names[loss.model],
                other,
                length,
                _difference(total.loss, total.base_loss, total.difference, total.documents),
                _difference(
                    score.log_probability,
                    score.base_log_probability,
                    score.log_probability_difference,
                    plan.effort.samples,
                ),
                score.exact.value,
                score.base_exact.value,
            )
        )
    return compared


def _difference(value: Estimate, base: Estimate | None, change: Estimate | None, groups: int) -> PairedDifference:
    assert base is not None and change is not None
    return PairedDifference(value.value, base.value, change.value, change.low, change.high, groups)
