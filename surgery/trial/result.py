"""The result of a trial: the measurements, what they say of each candidate, and the commands to go on with."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from surgery.result_table import ResultTable, ShownAsTable
from surgery.trial.measuring import TrialComparison
from surgery.trial.plan import TrialPlan
from surgery.trial.recommendation import TrialFinding

NOTHING = "Nothing here helps your model at this length."


@dataclass(frozen=True)
class TrialResult(ShownAsTable):
    """What a trial found.

    Attributes:
        plan: what was done.
        folder: that holds the calibrations.
        comparisons: every measured difference.
        cache: bytes of the key-value cache after ``plan.length`` tokens, by model.
        findings: what the measurements say of each candidate.
        recommended: names of the candidates that help.
        rests_on: what the recommendation rests on, one sentence each.
        not_measured: what nobody measured here, one sentence each.
        commands: to go on with, complete.
        seconds: that each step took, by its name; of this run and the ones that it went on from.
    """

    plan: TrialPlan
    folder: Path
    comparisons: tuple[TrialComparison, ...]
    cache: dict[str, int]
    findings: tuple[TrialFinding, ...]
    recommended: tuple[str, ...]
    rests_on: tuple[str, ...]
    not_measured: tuple[str, ...]
    commands: tuple[str, ...]
    seconds: dict[str, float]

    @property
    def sentence(self) -> str:
        """The recommendation in one sentence."""
        if not self.recommended:
            return NOTHING
        return f"At {self.plan.length:,} tokens, this helps your model: {' and '.join(self.recommended)}."

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {
            **{name: value for name, value in asdict(self).items() if name not in ("plan", "folder")},
            "plan": self.plan.to_dict(),
            "folder": self.folder.as_posix(),
            "recommendation": self.sentence,
        }

    def to_table(self) -> ResultTable:
        """One row for each model, length and measure."""
        columns = ("tokens", "model", "minus", "measure", "value", "other", "change", "low", "high")
        rows: list[tuple[Any, ...]] = []
        for one in self.comparisons:
            place = (one.tokens, one.model, one.other)
            for what, found in (("loss", one.loss), ("log-probability of an answer", one.answers)):
                rows.append((*place, what, found.value, found.other, found.change, found.low, found.high))
            rows.append((*place, "right answers", one.right, one.other_right, one.right - one.other_right, None, None))
        notes = (
            self.sentence,
            *(finding.sentence for finding in self.findings),
            *(f"Rests on: {line}" for line in self.rests_on),
            *(f"Not measured: {line}" for line in self.not_measured),
        )
        return ResultTable(f"trial of {self.plan.model}", columns, tuple(rows), notes)
