"""The interface of an engine, which runs items and reports how they ended."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from surgery.zoo.item_process import ItemResult
from surgery.zoo.plan import PlannedItem

POLL_SECONDS = 0.05
ItemEvent = tuple[PlannedItem, Mapping[str, Any]]


class Engine(Protocol):
    """Runs items. Every method returns at once, or nearly."""

    name: str

    def obstacle(self, planned: PlannedItem) -> str | None:
        """Why the item cannot start now; None if it can."""

    def start(self, planned: PlannedItem, log: Path) -> None:
        """Start the item; its output is written to ``log``."""

    def poll(self) -> tuple[list[ItemEvent], list[tuple[PlannedItem, ItemResult]]]:
        """New events, and the items that have ended; waits a moment without events."""

    @property
    def running(self) -> int:
        """Number of running items."""

    def stop(self) -> None:
        """Ask all running items to clean up and end."""

    def close(self) -> None:
        """Kill the items that still run, and release all resources."""
