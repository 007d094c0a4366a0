"""The result of a recovery run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from surgery.recovery.comparison import Comparison
from surgery.recovery.plan import FinetunePlan


@dataclass(frozen=True)
class FinetuneResult:
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

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            **asdict(self),
            "plan": self.plan.to_dict(),
            "output": None if self.output is None else str(self.output),
        }
