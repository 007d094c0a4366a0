"""The schedule of a run: when items start, what the ledger records of them, and which items are tried again."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from surgery.checkpoint import repair_output
from surgery.errors import SurgeryError
from surgery.zoo.engines.base import Engine
from surgery.zoo.item_process import ItemResult
from surgery.zoo.ledger import Ledger
from surgery.zoo.plan import PlannedItem, folder_id, output_appeared

OnEvent = Callable[[Mapping[str, Any]], None]


class Schedule:
    """Runs planned items on an engine. Events of items are written nowhere else."""

    def __init__(
        self, engine: Engine, ledger: Ledger, *, run: str, logs: Path, retries: int, on_event: OnEvent
    ) -> None:
        self._engine = engine
        self._ledger = ledger
        self._run = run
        self._logs = logs
        self._retries = retries
        self._on_event = on_event
        self._attempts: dict[str, int] = {}
        self._started: dict[str, Mapping[str, Any]] = {}

    def run(self, items: Sequence[PlannedItem]) -> bool:
        """Run all items; False if Ctrl-C stopped it. The running items have then cleaned up.

        Raises:
            CheckpointError: the ledger cannot be written; no item runs any more.
        """
        waiting = list(items)
        try:
            try:
                while waiting or self._engine.running:
                    self._start(waiting)
                    waiting += self._poll()
            except KeyboardInterrupt:
                self._on_event({"event": "stopping", "running": self._engine.running})
                self._engine.stop()
                while self._engine.running:
                    self._poll()
                return False
        finally:
            self._engine.close()
        return True

    def write(self, event: str, planned: PlannedItem, **content: Any) -> None:
        """Write an event of an item into the ledger, and pass it to ``on_event``."""
        document = self._ledger.write(
            event,
            **{
                "run": self._run,
                "item": planned.item.name,
                "fingerprint": planned.fingerprint,
                "work": planned.work_fingerprint,
                **content,
            },
        )
        if event == "started":
            self._started[planned.item.name] = document
        self._on_event(document)

    def _start(self, waiting: list[PlannedItem]) -> None:
        for planned in list(waiting):
            obstacle = self._engine.obstacle(planned)
            if obstacle is not None:
                if self._engine.running:
                    continue  # there may be room once another item has ended
                waiting.remove(planned)
                self.write("failed", planned, why="refused", message=f"there is no room: {obstacle}")
                continue
            waiting.remove(planned)
            name = planned.item.name
            self._attempts[name] = attempt = self._attempts.get(name, 0) + 1
            self.write(
                "started",
                planned,
                attempt=attempt,
                replaces=folder_id(planned.item.output),
                bytes=planned.source_bytes,
            )
            self._engine.start(planned, self._logs / f"{name}.log")

    def _poll(self) -> list[PlannedItem]:
        """Pass on new events and record the items that ended; returns the items to try again."""
        events, ended = self._engine.poll()
        for planned, event in events:
            if event.get("kind") in ("stage", "bytes", "tokens"):
                content = {key: value for key, value in event.items() if key != "kind"}
                self._on_event({"event": str(event["kind"]), "item": planned.item.name, **content})
        return [planned for planned, result in ended if self._record_end(planned, result)]

    def _record_end(self, planned: PlannedItem, result: ItemResult) -> bool:
        """Record how an item ended; True if it must be tried again."""
        took = {"seconds": round(result.seconds, 3), "peak": result.peak}
        if result.status == "done":
            self.write("done", planned, **result.content, **took)
            return False
        # A killed process can leave a half-written folder beside the output, or a complete output without its event.
        with contextlib.suppress(SurgeryError):  # the next attempt or run meets the same error and reports it
            repair_output(planned.item.output)
        # A process that is told to stop may have completed its output a moment before.
        stopped = result.status in ("died", "interrupted")
        if stopped and output_appeared(planned.item.output, self._started[planned.item.name]):
            self.write("done", planned, recovered=True, **took)
            return False
        if result.status == "interrupted":
            self.write("interrupted", planned, **took)
            return False
        if result.status == "died" and self._attempts[planned.item.name] <= self._retries:
            self.write("interrupted", planned, **result.content, **took)
            return True
        self.write("failed", planned, **result.content, **took)
        return False
