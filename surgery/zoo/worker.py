"""The process of one item: it reads a request from standard input and writes events to standard output.

It ends with the process that started it: when its input pipe closes (the starter was killed), it ends with all its
children. Nothing is lost, because an output appears only whole.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from surgery.checkpoint import format_size, resolve
from surgery.conversion import execute, make_plan
from surgery.conversion.calibration import calibrate_in_plan, uncalibrated
from surgery.conversion.plan import PreparedPlan, needed_bytes
from surgery.errors import OutputBusyError, PlanRefusedError, SurgeryError, VerificationError
from surgery.loading import RunOptions
from surgery.operations import OPERATIONS
from surgery.zoo.fingerprints import fingerprint, source_fingerprint

# How long to wait until the processes of a run that was just killed release the output.
_PATIENCE_SECONDS = 20.0
_BETWEEN_REPORTS_SECONDS = 0.2
_LONGEST_MESSAGE = 4000

Tell = Callable[..., None]


def main() -> None:
    """Carry out the request in the first line of stdin, a JSON object; events go to stdout, one JSON line each."""
    request = json.loads(sys.stdin.readline())
    # What libraries print goes to the log; only events go to the pipe.
    pipe = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    lock = threading.Lock()

    def tell(kind: str, **content: Any) -> None:
        with lock:
            pipe.write(json.dumps({"kind": kind, **content}) + "\n")
            pipe.flush()

    threading.Thread(target=_die_with_parent, daemon=True).start()
    # The starter handles Ctrl-C of the terminal and sends SIGTERM, which cleans up like an exception.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _stop)
    try:
        tell("done", **convert_item(request, tell))
    except _StopError:
        tell("interrupted")
    except VerificationError as error:
        tell("failed", why="verification", message=_short(error.message))
    except SurgeryError as error:
        why = "refused" if isinstance(error, PlanRefusedError) else "error"
        tell("failed", why=why, message=_short(str(error)))
    except MemoryError:
        tell("failed", why="memory", message="the process ran out of memory")
    except Exception as error:
        traceback.print_exc()
        tell("failed", why="unexpected", message=_short(f"{type(error).__name__}: {error}"))


def convert_item(request: Mapping[str, Any], tell: Tell) -> dict[str, Any]:
    """Convert and verify one item.

    Args:
        request: from :func:`surgery.zoo.item_process.request_for`.
        tell: called with the kind of an event and its content.

    Returns:
        The content of the ``done`` event.

    Raises:
        SurgeryError: the item cannot be converted or verified; no output is left.
    """
    if request["is_hub"]:
        tell("stage", stage="fetching")
    source = resolve(request["source"], request["revision"], is_hub_id=request["is_hub"])
    calibration = request["calibration"]
    operations = request["operations"] if calibration is None else uncalibrated(request["operations"])
    prepared = make_plan(source.folder, operations, allow_unverified=request["allow_unverified"])
    found = source_fingerprint(prepared.checkpoint)
    if request["source_fingerprint"] not in (None, found):
        raise PlanRefusedError("the source has changed since this run started", hint="Run the same command again.")
    need = needed_bytes(prepared, request["placement"])
    if request["disk"] is not None and need > request["disk"]:
        raise PlanRefusedError(f"needs {format_size(need)} of disk, its limit is {format_size(request['disk'])}")
    if calibration is not None:
        prepared = _calibrated(request, prepared, tell)
    result: dict[str, Any] = {
        "fingerprint": fingerprint(found, request["work"]),
        "plan": prepared.plan.hash,
        "commit": source.commit,
        "family": prepared.plan.source["model_type"],
        "bytes": prepared.checkpoint.disk_bytes,
    }

    def check(folder: Path) -> None:
        result["verdict"], result["checks"] = _verify(request, source.folder, folder, tell)

    done = _retry_while_busy(lambda: _execute(request, prepared, tell, check if request["verify"] != "none" else None))
    shutil.rmtree(request["kept"], ignore_errors=True)
    placed = sorted(set(done.values()))
    return {**result, "placed": ", ".join(placed)}


def _calibrated(request: Mapping[str, Any], prepared: PreparedPlan, tell: Tell) -> PreparedPlan:
    """The plan with the start values of a calibration. What an interrupted one has finished is used again."""
    tell("stage", stage="calibrating")
    calibration = request["calibration"]
    operation = OPERATIONS[calibration["operation"]]
    pace = _Pace()

    def on_progress(done: int, total: int, what: str) -> None:
        if pace.is_due(done >= total):
            tell("tokens", done=done, total=total)

    found = calibrate_in_plan(
        prepared.source.folder,
        calibration["text"],
        operation,
        prepared,
        settings=operation.settings_of_calibration(calibration["settings"]),
        run=RunOptions(device=calibration["device"], dtype=calibration["dtype"]),
        work=Path(request["kept"]),
        on_progress=on_progress,
    )
    allowed = request["allow_unverified"]
    return make_plan(prepared.source.folder, request["operations"], calibration=found, allow_unverified=allowed)


class _Pace:
    """Reports now and then, and always the last one."""

    def __init__(self) -> None:
        self._last = 0.0

    def is_due(self, last: bool) -> bool:
        """Whether to report now."""
        now = time.monotonic()
        if not last and now - self._last <= _BETWEEN_REPORTS_SECONDS:
            return False
        self._last = now
        return True


def _execute(
    request: Mapping[str, Any], prepared: PreparedPlan, tell: Tell, check: Callable[[Path], None] | None
) -> Mapping[str, str]:
    tell("stage", stage="converting")
    pace = _Pace()

    def on_bytes(done: int, total: int) -> None:
        if pace.is_due(done >= total):
            tell("bytes", done=done, total=total)

    output = Path(request["output"])
    result = execute(
        prepared, output, mode=request["placement"], force=request["force"], on_bytes=on_bytes, check=check
    )
    return result.placed


def _verify(request: Mapping[str, Any], source: Path, folder: Path, tell: Tell) -> tuple[str, int]:
    """Verify the staged folder; the record of the verification is written into it, with the final name."""
    from surgery.verification import verify

    tell("stage", stage="verifying")
    result = verify(
        folder,
        against=source,
        files_only=request["verify"] == "files",
        layers=request["layers"],
        name=Path(request["output"]).name,
        on_progress=lambda what, done, total: None,
    )
    if result.failed:
        faults = "; ".join(f"{check.name}: {check.detail}" for check in result.failed)
        raise VerificationError(f"{result.verdict}: {faults}")
    return result.verdict, len(result.checks)


def _retry_while_busy(task: Callable[[], Mapping[str, str]]) -> Mapping[str, str]:
    """Retry for a while if another process holds the output: it may be about to end."""
    until = time.monotonic() + _PATIENCE_SECONDS
    while True:
        try:
            return task()
        except OutputBusyError:
            if time.monotonic() > until:
                raise
            time.sleep(0.2)


class _StopError(BaseException):
    """SIGTERM as an exception that only `main` catches."""


def _stop(*_: object) -> None:
    raise _StopError


def _die_with_parent() -> None:
    # Not sys.stdin: a thread that waits in it holds its lock, and the interpreter would crash on that lock at exit.
    while os.read(0, 65536):
        pass
    # The pipe was closed: the starter has ended or was killed.
    if os.name == "posix" and os.getpgrp() == os.getpid():
        os.killpg(os.getpgrp(), signal.SIGKILL)
    os._exit(1)


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST_MESSAGE else text[:_LONGEST_MESSAGE] + " ..."


if __name__ == "__main__":
    main()
