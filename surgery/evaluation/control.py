"""Whether a gain of a trained model is the operation's: what its own training with controls says.

Training helps on text of the same kind with or without an operation. A control is the same training without it; only a
gain beyond the control's is a gain of the operation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from surgery.evaluation.estimates import Verdict
from surgery.evaluation.statistics import combine

# What the comparison of a training calls the trained model, and what it calls the models that are no control.
TRAINED, OTHERS = "recovered", ("source", "converted", "recovered")


def controls_of(comparison: Any) -> list[dict[str, Any]]:
    """The controls of a training from the comparison that its record holds; untrusted, so nothing is taken for granted.

    Returns:
        For each control its name, and the trained model minus it: ``value``, ``low`` and ``high``, in nats per token of
        held-out text. A control that is the source itself is left out: it was not trained.
    """
    if not isinstance(comparison, Mapping):
        return []
    models, differences = _mappings(comparison.get("models")), _mappings(comparison.get("differences"))
    trained = [one.get("name") for one in models if one.get("name") not in OTHERS and not one.get("note")]
    found = []
    for each in differences:
        difference = each.get("difference")
        if each.get("of") != TRAINED or each.get("minus") not in trained or not isinstance(difference, Mapping):
            continue
        values = {key: difference.get(key) for key in ("value", "low", "high")}
        if all(isinstance(value, int | float) for value in values.values()):
            found.append({"name": str(each["minus"]), **values})
    return found


def _mappings(given: Any) -> list[Mapping[str, Any]]:
    return [one for one in given if isinstance(one, Mapping)] if isinstance(given, list | tuple) else []


def condition_of(runs: Sequence[Mapping[str, Any]]) -> tuple[bool, str]:
    """Whether the controls of some trainings leave a gain to the operation, and that in a sentence.

    Args:
        runs: of one model, as ``training_history`` gives them; at least one.
    """
    own = next((run["control"] for run in runs if run.get("control")), None)
    if own is not None:
        return False, f"It is the control {own} of a training: its gain is not the operation's."
    controls = [control for run in runs for control in run.get("controls", ())]
    if not controls:
        return False, (
            "It was trained, and without a control nothing says how much of a gain the training alone gives; train "
            "with `control: true`."
        )
    held = [control for control in controls if control["high"] < 0]
    said = "; ".join(
        f"against the control {control['name']} its held-out loss is {control['value']:+.4f} "
        f"({control['low']:+.4f} to {control['high']:+.4f})"
        for control in controls
    )
    if len(held) == len(controls):
        return True, f"It was trained, and gains more than its control: {said}."
    return False, f"It was trained, and its control gains as much, so the operation is not what helps: {said}."


def with_control(verdict: Verdict, runs: Sequence[Mapping[str, Any]], *, base_trained: bool) -> Verdict:
    """A verdict in which nothing is gained that the control of the training may explain.

    Args:
        verdict: on a model and its base.
        runs: the trainings of the model.
        base_trained: the base was trained too, so it may be the control itself; nothing is changed.
    """
    if not runs or base_trained:
        return verdict
    holds, said = condition_of(runs)
    findings = [
        finding
        if finding.word != "gained"
        else replace(finding, word="gained" if holds else "undecided", sentence=f"{finding.sentence} {said}")
        for finding in verdict.findings
    ]
    return combine(verdict.model, findings)
