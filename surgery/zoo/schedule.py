"""The order of a run: what starts when, what is written into the ledger, and what is begun again."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from surgery.checkpoint import repair_output
from surgery.errors import SurgeryError
from surgery.zoo.engines import Engine
from surgery.zoo.item_process import Outcome
from surgery.zoo.ledger import Ledger
from surgery.zoo.plan import Row, appeared, identity

OnEvent = Callable[[Mapping[str, Any]], None]


class Schedule:
    """Carries rows out on an engine. Only here are events of items written."""

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

    def carry_out(self, rows: Sequence[Row]) -> bool:
        """Do all of them; returns False if Ctrl-C ended it before. Items that were running have then cleaned up.

        Raises:
            CheckpointError: the ledger cannot be written; nothing runs any more then.
        """
        waiting = list(rows)
        try:
            try:
                while waiting or self._engine.running:
                    self._start(waiting)
                    waiting += self._listen()
            except KeyboardInterrupt:
                self._on_event({"event": "stopping", "running": self._engine.running})
                self._engine.stop()
                while self._engine.running:
                    self._listen()
                return False
        finally:
            self._engine.close()
        return True

    def write(self, event: str, row: Row, **content: Any) -> None:
        """Into the ledger, and to whoever listens."""
        document = self._ledger.write(
            event,
            **{"run": self._run, "item": row.item.name, "fingerprint": row.fingerprint, "work": row.work, **content},
        )
        if event == "started":
            self._started[row.item.name] = document
        self._on_event(document)

    def _start(self, waiting: list[Row]) -> None:
        for row in list(waiting):
            obstacle = self._engine.obstacle(row)
            if obstacle is not None:
                if self._engine.running:
                    continue  # there is room once something has ended
                waiting.remove(row)
                self.write("failed", row, why="refused", message=f"there is no room: {obstacle}")
                continue
            waiting.remove(row)
            name = row.item.name
            self._attempts[name] = attempt = self._attempts.get(name, 0) + 1
            self.write("started", row, attempt=attempt, replaces=identity(row.item.output), bytes=row.bytes)
            self._engine.start(row, self._logs / f"{name}.log")

    def _listen(self) -> list[Row]:
        """Take note of what was said and ended; returns what is to be begun again."""
        said, ended = self._engine.poll()
        for row, event in said:
            if event.get("kind") in ("stage", "bytes"):
                content = {key: value for key, value in event.items() if key != "kind"}
                self._on_event({"event": str(event["kind"]), "item": row.item.name, **content})
        return [row for row, outcome in ended if self._ended(row, outcome)]

    def _ended(self, row: Row, outcome: Outcome) -> bool:
        """Write how it ended; True if it is to be begun again."""
        took = {"seconds": round(outcome.seconds, 3), "peak": outcome.peak}
        if outcome.status == "done":
            self.write("done", row, **outcome.content, **took)
            return False
        # A killed process leaves half a folder beside the output, or even the whole output without a word.
        with contextlib.suppress(SurgeryError):  # the next attempt, or the next run, meets it again and says so
            repair_output(row.item.output)
        # One that is told to stop may have brought its output into place a moment before.
        stopped = outcome.status in ("died", "interrupted")
        if stopped and appeared(row.item.output, self._started[row.item.name]):
            self.write("done", row, recovered=True, **took)
            return False
        if outcome.status == "interrupted":
            self.write("interrupted", row, **took)
            return False
        if outcome.status == "died" and self._attempts[row.item.name] <= self._retries:
            self.write("interrupted", row, **outcome.content, **took)
            return True
        self.write("failed", row, **outcome.content, **took)
        return False
