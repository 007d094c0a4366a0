"""One item in a process of its own: started, listened to, watched, and killed with its children past its limits."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from surgery.checkpoint import format_size
from surgery.zoo.manifest import plain_level
from surgery.zoo.plan import Row
from surgery.zoo.quantities import duration

_LOOK_SECONDS = 0.05
_MEMORY_SECONDS = 0.1
_STOP_SECONDS = 10.0
_LOG_TAIL = 600

OnEvent = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True)
class Outcome:
    """How an item ended.

    Attributes:
        status: ``done``, ``failed``, ``interrupted``; ``died`` is a process that was killed by somebody else.
        content: for the ledger: the worker's result, or ``why`` and ``message``.
        seconds: it took, by a clock that does not jump.
        peak: greatest resident memory that was seen, in bytes.
    """

    status: str
    content: Mapping[str, Any]
    seconds: float
    peak: int


def request_for(row: Row) -> dict[str, Any]:
    """What an item's process is told, as plain data."""
    item = row.item
    level = plain_level(item.verify)
    return {
        "name": item.name,
        "source": item.source,
        "is_hub": item.is_hub,
        "revision": item.revision,
        "operations": [dict(options) for options in item.operations],
        "output": str(item.output),
        "placement": item.placement,
        "allow_unverified": item.allow_unverified,
        "verify": level,
        "layers": item.layers,
        "force": row.again,
        "source_fingerprint": row.source,
        "work": row.work,
        "time": item.limits.time,
        "memory": item.limits.memory,
        "disk": item.limits.disk,
    }


class ItemProcess:
    """The process of one item. ``poll`` is to be called often: it passes events on and enforces the limits."""

    def __init__(self, request: Mapping[str, Any], log: Path, *, threads: int | None = None) -> None:
        """Start it.

        Args:
            request: what :func:`request_for` gives.
            log: gets what it prints; deleted once it has succeeded.
            threads: OMP_NUM_THREADS, where the environment does not set it.
        """
        self.request = request
        self._log = log
        self._began = time.monotonic()
        self._looked = 0.0
        self._peak = 0
        self._last: Mapping[str, Any] | None = None
        self._killed: dict[str, Any] | None = None
        self._stopping: float | None = None
        self._events: queue.SimpleQueue[Mapping[str, Any]] = queue.SimpleQueue()
        # What it writes for a while goes beside its log, where the end of the item, or its next begin, finds it.
        self._scratch = log.with_suffix(".tmp")
        shutil.rmtree(self._scratch, ignore_errors=True)
        self._scratch.mkdir(parents=True)
        environment = {**os.environ, **dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(self._scratch.resolve()))}
        if threads is not None:
            environment.setdefault("OMP_NUM_THREADS", str(threads))
        # The same package as here, wherever it was imported from.
        root = str(Path(__file__).parents[2])
        code = f"import sys; sys.path.insert(0, {root!r}); from surgery.zoo.worker import main; main()"
        with log.open("wb") as file:
            self._process = subprocess.Popen(
                [sys.executable, "-c", code],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                env=environment,
                start_new_session=True,
            )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        with contextlib.suppress(OSError):  # it may be dead already, which `poll` tells
            assert self._process.stdin is not None
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def poll(self, on_event: OnEvent) -> Outcome | None:
        """Pass on what it said since; returns how it ended once it has."""
        ended = self._process.poll() is not None
        if ended:
            self._reader.join(timeout=_STOP_SECONDS)
        while not self._events.empty():
            event = self._events.get()
            self._last = event
            on_event(event)
        if ended:
            return self._outcome()
        now = time.monotonic()
        limit = self.request["time"]
        if limit is not None and now - self._began > limit:
            self.kill("time", f"took more than its limit of {duration(limit)}")
        elif self._stopping is not None and now - self._stopping > _STOP_SECONDS:
            self.kill("stopped", "did not stop when asked")
        elif now - self._looked > _MEMORY_SECONDS:
            self._looked = now
            self._watch_memory()
        return None

    def stop(self) -> None:
        """Ask it to clean up and end; it is killed if it takes long."""
        if self._stopping is None:
            self._stopping = time.monotonic()
            self._process.terminate()

    def kill(self, why: str, message: str) -> None:
        """Kill it with everything that it started."""
        if self._killed is None:
            self._killed = {"why": why, "message": message}
        _kill_tree(self._process.pid)

    def _watch_memory(self) -> None:
        used = 0
        with contextlib.suppress(psutil.Error):
            own = psutil.Process(self._process.pid)
            for process in (own, *own.children(recursive=True)):
                with contextlib.suppress(psutil.Error):
                    used += process.memory_info().rss
        self._peak = max(self._peak, used)
        limit = self.request["memory"]
        if limit is not None and used > limit:
            self.kill("memory", f"had {format_size(used)} of memory, its limit is {format_size(limit)}")

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            try:
                event = json.loads(line)
            except ValueError:
                continue  # a line torn by a kill
            self._events.put(event)

    def _outcome(self) -> Outcome:
        _kill_group(self._process.pid)  # what it started and left behind
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
        shutil.rmtree(self._scratch, ignore_errors=True)
        last = dict(self._last or {})
        kind = str(last.pop("kind", ""))
        if kind in ("done", "failed", "interrupted"):
            status, content = kind, last
        elif self._killed is not None:
            status = "interrupted" if self._killed["why"] == "stopped" else "failed"
            content = self._killed
        elif self._stopping is not None:  # before it could listen to signals
            status, content = "interrupted", {}
        else:
            status, content = "died", {"why": "died", "message": self._death()}
        if status == "done":
            self._log.unlink(missing_ok=True)
        return Outcome(status, content, time.monotonic() - self._began, self._peak)

    def _death(self) -> str:
        code = self._process.returncode
        how = f"was killed ({signal.Signals(-code).name})" if code < 0 else f"ended with code {code}"
        with self._log.open("rb") as file:
            file.seek(max(0, self._log.stat().st_size - _LOG_TAIL))
            tail = file.read().decode("utf-8", "replace").strip()
        return f"its process {how} and gave no reason" + (f"; it said: {tail}" if tail else "")


def run_isolated(request: Mapping[str, Any], log: Path, *, threads: int | None = None) -> Outcome:
    """Run one item and wait for its end, within its limits."""
    process = ItemProcess(request, log, threads=threads)
    try:
        while (outcome := process.poll(lambda event: None)) is None:
            time.sleep(_LOOK_SECONDS)
        return outcome
    except BaseException:
        process.kill("stopped", "was given up")
        raise


def _kill_tree(pid: int) -> None:
    """Kill a process, its group, and every descendant that has left the group."""
    below: list[psutil.Process] = []
    with contextlib.suppress(psutil.Error):
        below = psutil.Process(pid).children(recursive=True)
    _kill_group(pid)
    for process in below:
        with contextlib.suppress(psutil.Error):
            process.kill()
    if os.name != "posix":
        with contextlib.suppress(psutil.Error):
            psutil.Process(pid).kill()


def _kill_group(pid: int) -> None:
    if os.name == "posix":
        # The group has the number of the process that began it, and keeps it as long as any member lives.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)
