"""The local engine: processes on this machine."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

from surgery.checkpoint import format_size, free_bytes
from surgery.zoo.engines.base import POLL_SECONDS, ItemEvent
from surgery.zoo.item_process import ItemProcess, ItemResult, request_for
from surgery.zoo.manifest import Parallel
from surgery.zoo.plan import PlannedItem


class LocalEngine:
    """Processes on this machine, bounded by their number, by memory and by disk space."""

    name = "local"

    def __init__(self, parallel: Parallel, output: Path) -> None:
        self._parallel = parallel
        self._output = output
        self._processes: list[tuple[PlannedItem, ItemProcess]] = []
        self._memory = parallel.memory or psutil.virtual_memory().available
        self._threads = max(1, (os.cpu_count() or 1) // parallel.items)

    @property
    def running(self) -> int:
        """Number of running items."""
        return len(self._processes)

    def obstacle(self, planned: PlannedItem) -> str | None:
        """Why the item cannot start now: the number of items, memory, or disk (all running items count in full)."""
        if self.running >= self._parallel.items:
            return f"{self.running} items are running"
        memory = self._memory - sum(other.memory for other, _ in self._processes)
        if planned.memory > memory:
            return f"it needs about {format_size(planned.memory)} of memory, {format_size(max(memory, 0))} are left"
        disk = free_bytes(self._output) - self._parallel.keep_free
        disk -= sum(other.disk or 0 for other, _ in self._processes)
        if (planned.disk or 0) > disk:
            return f"it needs {format_size(planned.disk or 0)} of disk, {format_size(max(disk, 0))} are left"
        return None

    def start(self, planned: PlannedItem, log: Path) -> None:
        """Start a process."""
        self._processes.append((planned, ItemProcess(request_for(planned), log, threads=self._threads)))

    def poll(self) -> tuple[list[ItemEvent], list[tuple[PlannedItem, ItemResult]]]:
        """New events of all processes, and the items that have ended."""
        events: list[ItemEvent] = []
        ended: list[tuple[PlannedItem, ItemResult]] = []
        for planned, process in list(self._processes):
            received: list[Mapping[str, Any]] = []
            result = process.poll(received.append)
            events += [(planned, event) for event in received]
            if result is not None:
                self._processes.remove((planned, process))
                ended.append((planned, result))
        if not events and not ended:
            time.sleep(POLL_SECONDS)
        return events, ended

    def stop(self) -> None:
        """Ask each process to stop."""
        for _, process in self._processes:
            process.stop()

    def close(self) -> None:
        """Kill the processes that still run."""
        for _, process in self._processes:
            process.kill("stopped", "was given up")
        while self._processes:
            self.poll()
