"""The result of a recovery run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from surgery.checkpoint.record import RECORD_FOLDER
from surgery.conversion.records import read_history
from surgery.errors import UsageError
from surgery.recovery.comparison import Comparison
from surgery.recovery.plan import FinetunePlan
from surgery.result_table import ResultTable, ShownAsTable

if TYPE_CHECKING:
    from surgery.reporting.pictures import Pictures


@dataclass(frozen=True)
class FinetuneResult(ShownAsTable):
    """The result of a run. A dry run has only a ``plan``."""

    plan: FinetunePlan
    output: Path | None = None
    steps: int = 0
    tokens: int = 0
    seconds: float = 0.0
    training_loss: float | None = None
    held_out_loss_before: float | None = None
    held_out_loss_after: float | None = None
    rejected_before: float | None = None
    rejected_after: float | None = None
    comparison: Comparison | None = None
    scale: Mapping[str, Mapping[str, Sequence[float]]] | None = None
    resumed_from: int | None = None
    controls: Mapping[str, Path] = field(default_factory=dict)  # the folders of their checkpoints, by name

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes on the models of the comparison, and on controls without a checkpoint."""
        noted = {model.name: model.note for model in (self.comparison.models if self.comparison else ()) if model.note}
        without = [control.note for control in self.plan.controls if control.note and control.name not in noted]
        return (*(f"{name}: {note}" for name, note in noted.items()), *without)

    def to_table(self) -> ResultTable:
        """One row for each model of the comparison with its held-out loss, or what a dry run plans."""
        plan = self.plan
        trained = f"{sum(plan.parameters.values()):,} of {plan.parameters_total:,} parameters"
        if self.output is None:
            facts = (("steps", plan.steps), ("tokens", plan.tokens), ("trained", trained), ("output", plan.output))
            return ResultTable(f"finetune {plan.model}: {plan.what}", ("what", "value"), facts, plan.notes)
        work = f"{self.steps:,} steps, {self.tokens:,} tokens, {self.seconds:,.0f} s, {trained}"
        columns = ("model", "learned", "loss", "difference", "low", "high")
        title = f"held-out loss, nats per token: {self.output}"
        if self.comparison is None:
            before, after = self.held_out_loss_before, self.held_out_loss_after
            rise = None if before is None or after is None else after - before
            two = (("before", before, None), ("after", after, rise))
            return ResultTable(title, ("when", "loss", "difference"), two, (work,))
        rows = []
        for model in self.comparison.models:
            against = self.comparison.difference(model.name, "source")
            change = against.difference if against is not None else None
            interval = (None, None, None) if change is None else (change.value, change.low, change.high)
            rows.append((model.name, model.learned, None if model.loss is None else model.loss.value, *interval))
        written = [f"checkpoint of the control {name}: {path}" for name, path in self.controls.items()]
        notes = (work, "the difference is from the source", *self.notes, *written)
        return ResultTable(title, columns, tuple(rows), notes)

    def plot(self) -> Pictures:
        """The curves of the run.

        Raises:
            UsageError: it was a dry run.
        """
        from surgery.reporting.pictures import Picture, Pictures

        if self.output is None:
            raise UsageError("a dry run has no curves")
        path = self.output / RECORD_FOLDER / str(read_history(self.output)[-1]["curves"])
        about = "The training run", "Loss, learning rates and learned numbers by step"
        return Pictures((Picture(path.stem, *about, path.read_bytes()),))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            **asdict(self),
            "plan": self.plan.to_dict(),
            "output": None if self.output is None else str(self.output),
            "controls": {name: str(path) for name, path in self.controls.items()},
        }
