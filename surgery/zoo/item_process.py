"""The process of one item: started, read, watched, and killed with its children when it exceeds its limits."""

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
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from surgery.checkpoint import format_size
from surgery.zoo.manifest import plain_level
from surgery.zoo.outputs import STATE_FOLDER
from surgery.zoo.plan import PlannedItem
from surgery.zoo.quantities import format_duration

_POLL_SECONDS = 0.05
_MEMORY_SECONDS = 0.1
_STOP_SECONDS = 10.0
_LOG_TAIL = 600

OnEvent = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True)
class ItemResult:
    """How an item ended.

    Attributes:
        status: ``done``, ``failed``, ``interrupted`` or ``died`` (the process was killed from outside).
        content: for the ledger: the result of the worker, or ``why`` and ``message``.
        seconds: wall time, by a monotonic clock.
        peak: highest resident memory that was measured, in bytes.
    """

    status: str
    content: Mapping[str, Any]
    seconds: float
    peak: int


def request_for(planned: PlannedItem) -> dict[str, Any]:
    """The request for an item's process, as plain data."""
    item = planned.item
    level = plain_level(item.verify)
    return {
        "name": item.name,
        "source": item.source,
        "is_hub": item.is_hub,
        "revision": item.revision,
        "operations": [dict(options) for options in item.operations],
        "calibration": item.calibration and asdict(item.calibration),
        "kept": str(item.output.parent / STATE_FOLDER / "calibrating" / item.name),
        "output": str(item.output),
        "placement": item.placement,
        "allow_unverified": item.allow_unverified,
        "verify": level,
        "layers": item.layers,
        "force": planned.replaces_output,
        "source_fingerprint": planned.source_fingerprint,
        "work": planned.work_fingerprint,
        "time": item.limits.time,
        "memory": item.limits.memory,
        "disk": item.limits.disk,
    }


class ItemProcess:
    """The process of one item. Call ``poll`` often: it passes on events and enforces the limits."""

    def __init__(self, request: Mapping[str, Any], log: Path, *, threads: int | None = None) -> None:
        """Start the process.

        Args:
            request: from :func:`request_for`.
            log: file for its output; deleted when it succeeds.
            threads: OMP_NUM_THREADS, unless the environment sets it.
        """
        self.request = request
        self._log = log
        self._started_at = time.monotonic()
        self._memory_measured_at = 0.0
        self._peak = 0
        self._last: Mapping[str, Any] | None = None
        self._killed: dict[str, Any] | None = None
        self._stopping: float | None = None
        self._events: queue.SimpleQueue[Mapping[str, Any]] = queue.SimpleQueue()
        # Temporary files lie beside the log, where the end of the item or its next start removes them.
        self._scratch = log.with_suffix(".tmp")
        shutil.rmtree(self._scratch, ignore_errors=True)
        self._scratch.mkdir(parents=True)
        environment = {**os.environ, **dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(self._scratch.resolve()))}
        if threads is not None:
            environment.setdefault("OMP_NUM_THREADS", str(threads))
        # The same package as in this process, wherever it was imported from.
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
        with contextlib.suppress(OSError):  # it may be dead already; `poll` reports it
            assert self._process.stdin is not None
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    def poll(self, on_event: OnEvent) -> ItemResult | None:
        """Pass on new events, and return the result once the process has ended."""
        ended = self._process.poll() is not None
        if ended:
            self._reader.join(timeout=_STOP_SECONDS)
        while not self._events.empty():
            event = self._events.get()
            self._last = event
            on_event(event)
        if ended:
            return self._result()
        now = time.monotonic()
        limit = self.request["time"]
        if limit is not None and now - self._started_at > limit:
            self.kill("time", f"took longer than its limit of {format_duration(limit)}")
        elif self._stopping is not None and now - self._stopping > _STOP_SECONDS:
            self.kill("stopped", "did not stop when asked")
        elif now - self._memory_measured_at > _MEMORY_SECONDS:
            self._memory_measured_at = now
            self._watch_memory()
        return None

    def stop(self) -> None:
        """Ask the process to clean up and end; it is killed if that takes long."""
        if self._stopping is None:
            self._stopping = time.monotonic()
            self._process.terminate()

    def kill(self, why: str, message: str) -> None:
        """Kill the process with all its children."""
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
            self.kill("memory", f"used {format_size(used)} of memory, its limit is {format_size(limit)}")

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            try:
                event = json.loads(line)
            except ValueError:
                continue  # a line torn by a kill
            self._events.put(event)

    def _result(self) -> ItemResult:
        _kill_group(self._process.pid)  # children that it left behind
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
        elif self._stopping is not None:  # stopped before its signal handler was in place
            status, content = "interrupted", {}
        else:
            status, content = "died", {"why": "died", "message": self._death()}
        if status == "done":
            self._log.unlink(missing_ok=True)
        return ItemResult(status, content, time.monotonic() - self._started_at, self._peak)

    def _death(self) -> str:
        code = self._process.returncode
        how = f"was killed ({signal.Signals(-code).name})" if code < 0 else f"ended with code {code}"
        with self._log.open("rb") as file:
            file.seek(max(0, self._log.stat().st_size - _LOG_TAIL))
            tail = file.read().decode("utf-8", "replace").strip()
        return f"its process {how} and gave no reason" + (f"; its last output: {tail}" if tail else "")


def run_isolated(request: Mapping[str, Any], log: Path, *, threads: int | None = None) -> ItemResult:
    """Run one item within its limits, and wait for its end."""
    process = ItemProcess(request, log, threads=threads)
    try:
        while (result := process.poll(lambda event: None)) is None:
            time.sleep(_POLL_SECONDS)
        return result
    except BaseException:
        process.kill("stopped", "was given up")
        raise


def _kill_tree(pid: int) -> None:
    """Kill a process, its process group, and every descendant that left the group."""
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
        # The group has the id of its first process, and keeps it as long as any member lives.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)
