"""The log of a stage: one row a step, an event for each row, the clock, and the guard that watches the loss."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from surgery.training.errors import DivergedError
from surgery.training.folder import TrainingFolder
from surgery.training.guard import DivergenceGuard
from surgery.training.progress import Progress

OnProgress = Callable[[dict[str, Any]], None]
_SMALLER = "Try a smaller optimizer.scale_lr or optimizer.lr, a longer warmup, or a smaller clip."


class StepLog:
    """Writes the rows of a stage.

    Args:
        folder: of the run.
        make_guard: a fresh guard for the stage.
        stage: its number, from 0.
        before: progress of earlier stages.
        total: steps of all stages, if known; for events.
        on_progress: called with events.
    """

    def __init__(
        self,
        folder: TrainingFolder,
        make_guard: Callable[[], DivergenceGuard],
        stage: int = 0,
        before: Progress | None = None,
        total: int | None = None,
        on_progress: OnProgress | None = None,
    ) -> None:
        self.folder, self._make_guard, self._stage, self._total = folder, make_guard, stage, total
        self.on_progress = on_progress
        self.offset = before.step if before else 0
        self.tokens = before.tokens if before else 0
        self._seconds_before = before.seconds if before else 0.0
        self.guard = make_guard()
        self._started = time.monotonic()
        self._fresh_tokens = 0

    def start(self) -> None:
        """Start the clock, and give the guard the earlier losses."""
        self.guard = self._make_guard()
        self.guard.add_rows(self.folder.rows(), self._stage)
        self._started, self._fresh_tokens = time.monotonic(), 0

    def resume(self, progress: Progress) -> None:
        """Continue the counts from a checkpoint."""
        self.tokens, self._seconds_before = progress.tokens, progress.seconds

    def add_tokens(self, count: int) -> None:
        """Count tokens that were trained on."""
        self.tokens += count
        self._fresh_tokens += count

    @property
    def seconds(self) -> float:
        """Time spent training, earlier parts of a resumed run included."""
        return self._seconds_before + time.monotonic() - self._started

    def new_row(self, step: int) -> dict[str, Any]:
        """The beginning of a row, for a step of the stage."""
        row: dict[str, Any] = {"step": self.offset + step, "tokens": self.tokens}
        return {**row, "stage": self._stage + 1} if self._stage else row

    def write(self, row: dict[str, Any], *, steps: int, done: int) -> None:
        """Append a row to the log, and give it as an event.

        Args:
            row: of a step (with ``loss``) or of an evaluation.
            steps: of the stage.
            done: steps that this process took.
        """
        row["seconds"] = round(self.seconds, 3)
        self.folder.append(row)
        if self.on_progress is None:
            return
        fresh = time.monotonic() - self._started
        rate = self._fresh_tokens / fresh if fresh > 0 else 0.0
        is_step = "loss" in row
        left = (self._total or self.offset + steps) - row["step"]
        self.on_progress(
            {
                "event": "step" if is_step else "evaluation",
                "steps": self._total or self.offset + steps,
                "tokens_per_second": round(rate, 1),
                "seconds_left": round(left * fresh / done, 1) if is_step and done else None,
                **row,
            }
        )

    def tell(self, event: dict[str, Any]) -> None:
        """Give an event."""
        if self.on_progress is not None:
            self.on_progress(event)

    def not_finite(self, step: int, what: str) -> DivergedError:
        """The error for a loss or gradient that is not a finite number."""
        return DivergedError(
            f"step {step}: {what}; training was stopped before the weights were changed",
            hint=f"{self._kept_checkpoint()} {_SMALLER}",
        )

    def risen(self, step: int, guard_steps: int, *, delete: bool) -> DivergedError:
        """The error for a loss that stayed up; checkpoints saved since it rose are deleted, so the last one is good.

        Args:
            step: of the run.
            guard_steps: number of steps that the guard watches.
            delete: whether this process deletes them.
        """
        since, limit = self.guard.since, self.guard.limit
        assert since is not None and limit is not None
        if delete:
            self.folder.delete_from(since)
        return DivergedError(
            f"step {step}: the loss has been above {limit:.4f} since step {since}, after a lowest mean of "
            f"{self.guard.lowest:.4f} over {guard_steps} steps; training was stopped",
            hint=f"{self._kept_checkpoint()} {_SMALLER} guard.rise and guard.steps set how much rise is allowed.",
        )

    def _kept_checkpoint(self) -> str:
        last = self.folder.last_complete()
        if last is None:
            return "No checkpoint had been saved yet."
        place = last.relative_to(self.folder.output.parent)
        return f"The last good checkpoint is {place}, and --resume continues from it."
