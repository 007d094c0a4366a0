"""Where items run: what a scheduler needs of an engine, and the engine of this machine."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import psutil

from surgery.checkpoint import format_size, free_bytes
from surgery.zoo.item_process import ItemProcess, Outcome, request_for
from surgery.zoo.manifest import Parallel
from surgery.zoo.plan import Row

POLL_SECONDS = 0.05
Said = tuple[Row, Mapping[str, Any]]


class Engine(Protocol):
    """Runs items and says how they ended. All of its methods return at once, or nearly."""

    name: str

    def obstacle(self, row: Row) -> str | None:
        """Why the item cannot be started now, or None."""

    def start(self, row: Row, log: Path) -> None:
        """Start it; ``log`` gets what it prints."""

    def poll(self) -> tuple[list[Said], list[tuple[Row, Outcome]]]:
        """What was said and what has ended since; waits a moment where nothing did."""

    @property
    def running(self) -> int:
        """How many are running."""

    def stop(self) -> None:
        """Ask all to clean up and end."""

    def close(self) -> None:
        """Kill what still runs, and let go of everything."""


class LocalEngine:
    """Processes on this machine."""

    name = "local"

    def __init__(self, parallel: Parallel, output: Path) -> None:
        self._parallel = parallel
        self._output = output
        self._processes: list[tuple[Row, ItemProcess]] = []
        self._memory = parallel.memory or psutil.virtual_memory().available
        self._threads = max(1, (os.cpu_count() or 1) // parallel.items)

    @property
    def running(self) -> int:
        """How many are running."""
        return len(self._processes)

    def obstacle(self, row: Row) -> str | None:
        """The number of items, and what is left of memory and disk once all that run have taken what they may."""
        if self.running >= self._parallel.items:
            return f"{self.running} are running"
        memory = self._memory - sum(other.memory for other, _ in self._processes)
        if row.memory > memory:
            return f"it needs about {format_size(row.memory)} of memory, {format_size(max(memory, 0))} are left"
        disk = free_bytes(self._output) - self._parallel.keep_free
        disk -= sum(other.disk or 0 for other, _ in self._processes)
        if (row.disk or 0) > disk:
            return f"it needs {format_size(row.disk or 0)} of disk, {format_size(max(disk, 0))} are left"
        return None

    def start(self, row: Row, log: Path) -> None:
        """Start a process."""
        self._processes.append((row, ItemProcess(request_for(row), log, threads=self._threads)))

    def poll(self) -> tuple[list[Said], list[tuple[Row, Outcome]]]:
        """Listen to every process."""
        said: list[Said] = []
        ended: list[tuple[Row, Outcome]] = []
        for row, process in list(self._processes):
            outcome = process.poll(lambda event, row=row: said.append((row, event)))  # type: ignore[misc]
            if outcome is not None:
                self._processes.remove((row, process))
                ended.append((row, outcome))
        if not said and not ended:
            time.sleep(POLL_SECONDS)
        return said, ended

    def stop(self) -> None:
        """Ask each process to stop."""
        for _, process in self._processes:
            process.stop()

    def close(self) -> None:
        """Kill what is left."""
        for _, process in self._processes:
            process.kill("stopped", "was given up")
        while self._processes:
            self.poll()
