"""The plan of a trial: its steps and their time, and the most work that fits into the minutes that are given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from surgery.errors import UsageError
from surgery.loading.pace import ModelSize, duration, measure_pace, model_size
from surgery.operations import OPERATIONS
from surgery.operations.tried import QUESTION_TOKENS
from surgery.result_table import ResultTable, ShownAsTable
from surgery.trial.preparation import SHORTEST, Preparation
from surgery.trial.texts import divide_texts

# Depths of the facts in each measured haystack; a haystack of as many tokens has two at each.
DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
_ROOM = 1024
# A quarter of the length is measured too where it is at least as long: a shorter haystack is mostly facts.
_SHORTEST_QUARTER = 512


@dataclass(frozen=True)
class Slowness:
    """Time of a pass of the model over the time that the pace of this processor promises: dtype and device decide.

    Attributes:
        text: of a pass over a text.
        question: of a pass over a question, which continues from the cache of a text.
    """

    text: float = 1.0
    question: float = 1.0

    def of(self, tokens: int) -> float:
        """Of a pass over a number of tokens."""
        return self.question if tokens <= QUESTION_TOKENS else self.text


@dataclass(frozen=True)
class Effort:
    """How much work a trial does.

    Attributes:
        share: of the haystacks and passages that a calibration has by default.
        samples: measured haystacks and passages of each length.
        short: whether a quarter of the length is measured too.
    """

    share: float
    samples: int
    short: bool


# The last one measures as much as an interval needs to say that something gains.
EFFORTS = (Effort(1.0, 16, True), Effort(0.66, 12, True), Effort(0.5, 8, True), Effort(0.33, 8, False))


@dataclass(frozen=True)
class TrialStep:
    """One step, and about how long it takes, in seconds."""

    name: str
    what: str
    seconds: float


@dataclass(frozen=True)
class TrialPlan(ShownAsTable):
    """What a trial does.

    Attributes:
        model, commit: the source.
        length: tokens of the longest haystack and passage.
        effort: how much work is done.
        minutes: that were given.
        steps: in order.
        left_out: what does not fit into the time, or cannot be tried, one sentence each.
        measured_on: the texts, in words.
        request: SHA-256 of model, texts and how the model runs.
    """

    model: str
    commit: str | None
    length: int
    effort: Effort
    minutes: float
    steps: tuple[TrialStep, ...]
    left_out: tuple[str, ...]
    measured_on: str
    request: str

    @property
    def lengths(self) -> tuple[int, ...]:
        """The measured lengths, in tokens."""
        return _lengths(self.length, self.effort)

    @property
    def seconds(self) -> float:
        """Of all steps."""
        return sum(step.seconds for step in self.steps)

    @property
    def estimate(self) -> str:
        """The time in words."""
        return duration(self.seconds)

    def to_table(self) -> ResultTable:
        """One row for each step."""
        rows = tuple((number, step.what, step.seconds) for number, step in enumerate(self.steps, 1))
        return ResultTable(f"trial of {self.model}", ("step", "what", "seconds"), rows, (self.estimate, *self.left_out))

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {**asdict(self), "seconds": self.seconds, "estimate": self.estimate}


def facts_in(length: int) -> int:
    """Number of facts in a measured haystack, by its length in tokens."""
    return len(DEPTHS) * (2 if length >= _ROOM else 1)


def _lengths(length: int, effort: Effort) -> tuple[int, ...]:
    both = effort.short and length // 4 >= _SHORTEST_QUARTER
    return (length // 4, length) if both else (length,)


def read_plan(content: Mapping[str, Any]) -> TrialPlan:
    """A plan from its plain data."""
    own = {name: value for name, value in content.items() if name not in ("seconds", "estimate")}
    return TrialPlan(
        **{
            **own,
            "effort": Effort(**own["effort"]),
            "steps": tuple(TrialStep(**step) for step in own["steps"]),
            "left_out": tuple(own["left_out"]),
        }
    )


def make_plan(prepared: Preparation, minutes: float, slowness: Slowness | None = None) -> TrialPlan:
    """The longest length, and at that the most work, that fits into the minutes.

    Args:
        prepared: model, candidates and texts.
        minutes: that the trial may take.
        slowness: of the model, where it was timed.

    Raises:
        UsageError: not even the least work at the shortest length fits.
    """
    size = model_size(prepared.checkpoint, prepared.run)
    dropped: list[str] = []
    for length in prepared.lengths:
        for effort in EFFORTS:
            steps = _steps(prepared, length, effort, size, slowness or Slowness())
            if sum(step.seconds for step in steps) <= 60 * minutes:
                return _plan(prepared, length, effort, steps, minutes, dropped)
        least = sum(step.seconds for step in steps)
        dropped.append(f"texts of {length:,} tokens: they take {duration(least)} at least")
    shorter = f", or a shorter --length: {SHORTEST} tokens at least" if prepared.lengths[-1] > SHORTEST else ""
    raise UsageError(
        f"a trial at {prepared.lengths[-1]:,} tokens takes {duration(least)} at least, more than --minutes {minutes:g}",
        hint=f"Pass --minutes {int(least / 60) + 1}{shorter}.",
    )


def _plan(
    prepared: Preparation, length: int, effort: Effort, steps: tuple[TrialStep, ...], minutes: float, dropped: list[str]
) -> TrialPlan:
    full = EFFORTS[0]
    left_out = [f"{name}: {reason}" for name, reason in prepared.refused.items()] + dropped
    if effort != full:
        left_out.append(
            f"{1 - effort.share:.0%} of the calibrations' texts, and {full.samples - effort.samples} of "
            f"{full.samples} measured texts of each length"
        )
    if not effort.short and _lengths(length, full) != _lengths(length, effort):
        left_out.append(f"measuring at {length // 4:,} tokens")
    return TrialPlan(
        prepared.source.name,
        prepared.source.commit,
        length,
        effort,
        minutes,
        steps,
        (*left_out, *prepared.left_out),
        divide_texts(prepared.texts, length).in_words,
        prepared.request,
    )


def _steps(
    prepared: Preparation, length: int, effort: Effort, size: ModelSize, slowness: Slowness
) -> tuple[TrialStep, ...]:
    def seconds(passes: list[tuple[int, float]]) -> float:
        pace = measure_pace()
        return sum(count * slowness.of(tokens) * size.seconds(pace, tokens, tokens) for tokens, count in passes)

    found = [TrialStep("inspect", "inspect the model: which operations apply", 0.0)]
    for tried in prepared.tried:
        if tried.candidate.derived_from is not None:
            continue
        operation = OPERATIONS[tried.operation]
        settings = operation.trial_settings(length, effort.share)
        passes = operation.trial_passes(settings, prepared.anatomy, tried.number)
        what = f"calibrate {tried.name}: {tried.candidate.summary}"
        found.append(TrialStep(tried.name, what, round(seconds(passes), 1)))
    models = 1 + len(prepared.tried)
    lengths = _lengths(length, effort)
    measured: list[tuple[int, float]] = [(one, 2 * effort.samples * models) for one in lengths]
    measured.append((QUESTION_TOKENS, effort.samples * models * sum(map(facts_in, lengths))))
    what = f"measure {models} models on text that no calibration saw"
    return (*found, TrialStep("measure", what, round(seconds(measured), 1)))
