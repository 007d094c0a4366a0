"""A gain of a trained model needs the control of its training."""

from __future__ import annotations

from typing import Any

import pytest

from surgery.evaluation.control import condition_of, controls_of, with_control
from surgery.evaluation.estimates import Finding, Verdict

GAINED = Verdict(0, "gained", (Finding("Loss", "gained", "The loss fell."), Finding("Retrieval", "kept", "As before.")))


def comparison(high: float, note: str | None = None) -> dict[str, Any]:
    difference = {"value": high - 0.01, "low": high - 0.02, "high": high}
    return {
        "models": [
            {"name": "source", "note": None},
            {"name": "recovered", "note": None},
            {"name": "temperature", "note": note},
        ],
        "differences": [
            {"of": "recovered", "minus": "source", "difference": difference},
            {"of": "recovered", "minus": "temperature", "difference": difference},
        ],
    }


def run(high: float | None, note: str | None = None) -> dict[str, Any]:
    return {"label": "x", "rows": [], "controls": [] if high is None else controls_of(comparison(high, note))}


@pytest.mark.parametrize(
    ("runs", "word", "said"),
    [
        ([], "gained", "The loss fell."),
        ([run(-0.001)], "gained", "gains more than its control: against the control temperature its held-out loss is"),
        ([run(0.001)], "undecided", "its control gains as much"),
        ([run(None)], "undecided", "without a control nothing says"),
        ([run(-0.001, "this control is the source model")], "undecided", "without a control nothing says"),
    ],
)
def test_a_gain_needs_its_control(runs: list[dict[str, Any]], word: str, said: str) -> None:
    found = with_control(GAINED, runs, base_trained=False)
    assert found.word == word and said in found.findings[0].sentence
    assert found.findings[1] == GAINED.findings[1], "what is not gained stays as it is"


def test_a_trained_base_may_be_the_control_itself() -> None:
    assert with_control(GAINED, [run(None)], base_trained=True) is GAINED


def test_a_loss_needs_no_control() -> None:
    lost = Verdict(0, "lost", (Finding("Loss", "lost", "The loss rose."),))
    assert with_control(lost, [run(None)], base_trained=False) == lost


@pytest.mark.parametrize("wrong", [None, [], {"models": 3}, {"models": [3], "differences": [{"of": "recovered"}]}])
def test_a_record_of_a_stranger_gives_no_control(wrong: Any) -> None:
    assert controls_of(wrong) == []


def test_every_control_must_leave_a_gain() -> None:
    assert condition_of([run(-0.001), run(0.001)])[0] is False
