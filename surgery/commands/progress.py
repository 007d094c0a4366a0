"""Progress on stderr: a bar with a remaining time on a terminal, a line now and then in a log.

Imported when a bar is drawn and not before: ``--help`` and plans draw none.
"""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    Task,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

# Seconds between two lines where there is no terminal to draw a bar on.
LINE_EVERY = 15.0
# Seconds whose updates give the remaining time. In rich's own 30 seconds a step that takes a minute has no two updates,
# and no time would be shown.
SPEED_OVER = 600.0


class Lines(Progress):
    """Prints a step when it begins, and its progress as a line every :data:`LINE_EVERY` seconds, without a bar."""

    def __init__(self, console: Console) -> None:
        super().__init__(console=console, disable=True, speed_estimate_period=SPEED_OVER)
        self._said = time.monotonic()

    def update(self, task_id: TaskID, *arguments: Any, **changes: Any) -> None:
        """As rich's own."""
        super().update(task_id, *arguments, **changes)
        if time.monotonic() - self._said >= LINE_EVERY:
            self._say(task_id)

    def reset(self, task_id: TaskID, *arguments: Any, **changes: Any) -> None:
        """As rich's own; a step that begins is always said, as it may be long and say nothing itself."""
        super().reset(task_id, *arguments, **changes)
        self._say(task_id)

    def _say(self, task_id: TaskID) -> None:
        self._said = time.monotonic()
        task = next(task for task in self.tasks if task.id == task_id)
        self.console.print(line_of(task), markup=False, highlight=False, soft_wrap=True)


def line_of(task: Task) -> str:
    """A task as a line of a log: what is done, its share, its rate, and the time that remains, as far as known."""
    parts = [task.description]
    if task.total is not None:
        parts.append(f"{task.percentage:.0f}%")
    if rate := task.fields.get("rate"):
        parts.append(rate)
    if not task.finished and task.time_remaining is not None:
        parts.append(f"{timedelta(seconds=int(task.time_remaining))} left")
    return ", ".join(parts)


def bar(console: Console, *, silent: bool) -> Progress:
    """For ``console``, which may be a terminal or not.

    Args:
        console: where it goes.
        silent: nothing is to be shown at all.
    """
    if not silent and not console.is_terminal:
        return Lines(console)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TextColumn("elapsed,"),
        TimeRemainingColumn(),
        TextColumn("left"),
    )
    return Progress(*columns, console=console, transient=True, disable=silent, speed_estimate_period=SPEED_OVER)
