"""The guard: it stops a run whose loss stays far above its lowest level."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from surgery.training.options import Guard

_LEAST_RISE = 0.1


class DivergenceGuard:
    """Watches the losses of one stage.

    The loss has risen where it is above its lowest mean over ``guard.steps`` steps by more than the share
    ``guard.rise``; it has diverged where every one of ``guard.steps`` steps in a row is. Single steps may be anything.
    """

    def __init__(self, options: Guard, least_rise: float = _LEAST_RISE, terms: Sequence[str] = ()) -> None:
        """Begin to watch.

        Args:
            options: steps and rise.
            least_rise: a smaller rise is never a divergence, in the unit of the loss.
            terms: keys of extra loss terms in a row of the log, for which the loss is traded.
        """
        self._steps, self._rise, self._least = options.steps, options.rise, least_rise
        self._terms = tuple(terms)
        self._recent: deque[float] = deque(maxlen=max(1, options.steps))
        self.lowest: float | None = None
        self._above = 0
        self.since: int | None = None

    @property
    def limit(self) -> float | None:
        """Above it the loss has risen; None before ``guard.steps`` steps."""
        if self.lowest is None:
            return None
        return self.lowest + max(self._rise * self.lowest, self._least)

    def add(self, step: int, loss: float) -> bool:
        """Note the loss of a step; whether training has diverged.

        ``since`` is the step at which the present rise began, or None.
        """
        if not self._steps:
            return False
        limit = self.limit
        if limit is not None and loss > limit:
            self.since = step if self.since is None else self.since
            self._above += 1
        else:
            self.since, self._above = None, 0
        self._recent.append(loss)
        if len(self._recent) == self._steps:
            mean = sum(self._recent) / self._steps
            self.lowest = mean if self.lowest is None else min(self.lowest, mean)
        return self._above >= self._steps

    def add_row(self, row: Mapping[str, Any]) -> bool:
        """As :meth:`add`, for a step's row of the log: its loss and its extra loss terms together."""
        return self.add(row["step"], row["loss"] + sum(row.get(term, 0.0) for term in self._terms))

    def add_rows(self, rows: Sequence[Mapping[str, Any]], stage: int) -> None:
        """Read the losses of a resumed run."""
        for row in rows:
            if "loss" in row and row.get("stage", 1) == stage + 1:
                self.add_row(row)
