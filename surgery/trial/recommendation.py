"""What a trial recommends: only what an interval shows, and never what its control explains as well."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from surgery.evaluation.estimates import Estimate
from surgery.evaluation.statistics import FEWEST_FOR_CLAIM, change_in_words, judge
from surgery.trial.measuring import TrialComparison
from surgery.trial.preparation import Tried

# A cache that keeps more than this is no saving worth a change of the model.
_MOST_CACHE = 0.95


@dataclass(frozen=True)
class TrialFinding:
    """What the measurements say of one candidate.

    Attributes:
        candidate: its name.
        helps: whether it may be recommended.
        sentence: why, with the numbers.
    """

    candidate: str
    helps: bool
    sentence: str


@dataclass(frozen=True)
class TrialEvidence:
    """What was measured of the candidates at the whole length.

    Attributes:
        tokens: the length.
        against_source: of each measured candidate.
        against_control: of each measured candidate with a measured control.
        failed: why a calibration found nothing, by candidate.
        allowed: by how much the loss may rise, in nats per token, by candidate.
        kept: share of the cache that stays, by candidate.
    """

    tokens: int
    against_source: Mapping[str, TrialComparison]
    against_control: Mapping[str, TrialComparison]
    failed: Mapping[str, str]
    allowed: Mapping[str, float]
    kept: Mapping[str, float]


def find(tried: Sequence[Tried], evidence: TrialEvidence) -> list[TrialFinding]:
    """A finding for each candidate that can be recommended, in order."""
    found = []
    for one in tried:
        if one.candidate.derived_from is not None:
            continue
        if one.name in evidence.failed:
            found.append(TrialFinding(one.name, False, f"{one.name}: {evidence.failed[one.name]}."))
        elif one.candidate.aim == "answers":
            found.append(_answers(one, evidence))
        else:
            found.append(_memory(one, evidence))
    return found


def best_of(tried: Sequence[Tried], findings: Sequence[TrialFinding]) -> tuple[str, ...]:
    """The names that are recommended: of each aim the last that helps, which has beaten the one before it."""
    helps = {finding.candidate for finding in findings if finding.helps}
    best = {one.candidate.aim: one.name for one in tried if one.name in helps}
    return tuple(best.values())


def _answers(tried: Tried, evidence: TrialEvidence) -> TrialFinding:
    own = evidence.against_source[tried.name]
    name, change = tried.name, own.answers.estimate
    allowed = evidence.allowed[name]
    uncertain = f", which may be more than the +{allowed:g} allowed" if own.loss.change > allowed else ""
    numbers = (
        f"at {evidence.tokens:,} tokens the log-probability of an answer changes by {change_in_words(change)}; "
        f"{own.right:.0%} of the answers are right, {own.other_right:.0%} in the source; the loss of text changes by "
        f"{change_in_words(own.loss.estimate)}{uncertain}"
    )
    word = judge(change, 0.0, more_is_better=True, groups=own.answers.groups)
    if word != "gained":
        return _no(name, f"{_why_not(change, own.answers.groups)}: {numbers}.")
    low = own.loss.low
    if (own.loss.change if low is None else low) > allowed:
        return TrialFinding(name, False, f"{name}: costs more loss than the +{allowed:g} allowed: {numbers}.")
    control = tried.candidate.control
    if control is None:
        return TrialFinding(name, True, f"{name}: right answers become likelier: {numbers}.")
    against = evidence.against_control.get(name)
    if against is None:
        return _no(name, f"its control {control} was not measured, so its gain proves nothing.")
    difference = against.answers.estimate
    beats = judge(difference, 0.0, more_is_better=True, groups=against.answers.groups) == "gained"
    verdict = (
        f"right answers become likelier than with its control {control}"
        if beats
        else f"its control {control} explains the gain"
    )
    words = f"the answers against {control} change by {change_in_words(difference)}"
    return TrialFinding(name, beats, f"{name}: {verdict}: {words}; {numbers}.")


def _memory(tried: Tried, evidence: TrialEvidence) -> TrialFinding:
    own = evidence.against_source[tried.name]
    name, kept, allowed = tried.name, evidence.kept[tried.name], evidence.allowed[tried.name]
    numbers = (
        f"{kept:.0%} of the cache stays at {evidence.tokens:,} tokens; the loss of text changes by "
        f"{change_in_words(own.loss.estimate)}; {own.right:.0%} of the answers are right, {own.other_right:.0%} in the "
        f"source, and their log-probability changes by {change_in_words(own.answers.estimate)}"
    )
    if kept > _MOST_CACHE:
        return _no(name, f"saves next to nothing: {numbers}.")
    if own.loss.groups < FEWEST_FOR_CLAIM or own.loss.high is None:
        return TrialFinding(
            name, False, f"{name}: {own.loss.groups} texts are not enough to say what it costs: {numbers}."
        )
    if own.loss.high > allowed:
        return _no(name, f"the loss may rise by more than the +{allowed:g} allowed: {numbers}.")
    if judge(own.answers.estimate, 0.0, more_is_better=True) == "lost":
        return _no(name, f"saves memory, but right answers become less likely: {numbers}.")
    control = tried.candidate.control
    against = evidence.against_control.get(name)
    if control is not None and against is None:
        return TrialFinding(
            name, False, f"{name}: its control {control} was not measured, so its choice proves nothing."
        )
    if against is not None:
        words = f"the loss against {control} changes by {change_in_words(against.loss.estimate)}"
        if judge(against.loss.estimate, 0.0, groups=against.loss.groups) != "gained":
            return _no(name, f"its control {control} is as good: {words}; {numbers}.")
        numbers = f"{words}; {numbers}"
    return TrialFinding(name, True, f"{name}: saves memory within its loss: {numbers}.")


def _why_not(change: Estimate, groups: int) -> str:
    if change.low is None or change.high is None or change.low <= 0 <= change.high:
        return "no gain that the interval shows"
    return "right answers become less likely" if change.high < 0 else f"gained on {groups} haystacks, not enough to say"


def _no(name: str, reason: str) -> TrialFinding:
    return TrialFinding(name, False, f"{name}: {reason}")
