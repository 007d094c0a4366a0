"""What is recommended: only what an interval shows, and never what a control explains."""

from __future__ import annotations

from typing import Any

import pytest

from surgery.operations import OPERATIONS
from surgery.trial.measuring import PairedDifference, TrialComparison
from surgery.trial.preparation import Tried
from surgery.trial.recommendation import TrialEvidence, best_of, find

TRIED = [
    Tried(name, number, candidate)
    for name, operation in OPERATIONS.items()
    for number, candidate in enumerate(operation.trial_candidates())
]
GAIN, NONE, LESS = (0.5, 0.2, 0.8), (0.1, -0.2, 0.4), (-0.5, -0.8, -0.2)
CHEAP, COSTLY, WIDE, BETTER = (0.001, 0.0, 0.002), (0.05, 0.04, 0.06), (0.004, -0.01, 0.02), (-0.02, -0.03, -0.01)


def difference(numbers: tuple[float, float, float], groups: int = 8) -> PairedDifference:
    change, low, high = numbers
    return PairedDifference(1 + change, 1.0, change, low, high, groups)


def against(name: str, other: str, loss: Any, answers: Any, groups: int = 8) -> TrialComparison:
    return TrialComparison(name, other, 1024, difference(loss, groups), difference(answers, groups), 0.5, 0.4)


def evidence(**changes: Any) -> TrialEvidence:
    """Everything helps, and beats its control; ``changes`` replace loss and answers of single comparisons."""
    source = {
        "constant": changes.get("constant", (CHEAP, GAIN)),
        "bias": changes.get("bias", (CHEAP, GAIN)),
        "windows": changes.get("windows", (CHEAP, NONE)),
        "equal-windows": (CHEAP, NONE),
    }
    groups = changes.get("groups", 8)
    failed = changes.get("failed", {})
    control = {
        "bias": against("bias", "constant", CHEAP, changes.get("bias_control", GAIN), groups),
        "windows": against("windows", "equal-windows", changes.get("windows_control", BETTER), NONE, groups),
    }
    return TrialEvidence(
        1024,
        {name: against(name, "source", *values, groups) for name, values in source.items() if name not in failed},
        {name: one for name, one in control.items() if not {name, one.other} & set(failed)},
        failed,
        {"constant": 0.01, "bias": 0.01, "windows": 0.005, "equal-windows": 0.005},
        {"windows": changes.get("kept", 0.6)},
    )


@pytest.mark.parametrize(
    ("changes", "wanted", "says"),
    [
        ({}, ("bias", "windows"), "likelier than with its control constant"),
        ({"bias_control": NONE}, ("constant", "windows"), "its control constant explains the gain"),
        ({"bias_control": LESS}, ("constant", "windows"), "its control constant explains the gain"),
        ({"constant": (CHEAP, NONE), "bias": (CHEAP, NONE)}, ("windows",), "no gain that the interval shows"),
        ({"constant": (CHEAP, LESS), "bias": (CHEAP, LESS)}, ("windows",), "answers become less likely"),
        ({"constant": (COSTLY, GAIN)}, ("bias", "windows"), "costs more loss than the +0.01 allowed"),
        ({"bias": ((0.02, 0.0, 0.04), GAIN)}, ("bias", "windows"), "which may be more than the +0.01 allowed"),
        ({"windows": (WIDE, NONE)}, ("bias",), "the loss may rise by more than the +0.005 allowed"),
        ({"windows": (CHEAP, LESS)}, ("bias",), "saves memory, but right answers become less likely"),
        ({"windows_control": NONE}, ("bias",), "its control equal-windows is as good"),
        ({"kept": 0.97}, ("bias",), "saves next to nothing"),
        ({"groups": 7}, (), "gained on 7 haystacks, not enough to say"),
        ({"failed": {"constant": "no choice"}}, ("windows",), "its control constant was not measured"),
        ({"failed": {"windows": "no choice keeps the loss"}}, ("bias",), "windows: no choice keeps the loss."),
    ],
)
def test_only_what_an_interval_shows(changes: dict[str, Any], wanted: tuple[str, ...], says: str) -> None:
    found = find(TRIED, evidence(**changes))
    assert best_of(TRIED, found) == wanted
    assert says in " ".join(finding.sentence for finding in found)
    assert [finding.candidate for finding in found] == ["constant", "bias", "windows"], "no control is recommended"


def test_the_sentences_name_the_numbers() -> None:
    (constant, *_) = find(TRIED, evidence())
    assert "+0.5000 (95% interval +0.2000 to +0.8000)" in constant.sentence
    assert "50% of the answers are right, 40% in the source" in constant.sentence
