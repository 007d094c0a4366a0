"""The process of one item: told what to do on its standard input, it tells what happens on its standard output.

It dies with whoever started it: the pipe that it was started with is watched, and when it closes (the starter was
killed) this process ends with all that it started. Nothing is lost then, since an output appears only whole.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from surgery.checkpoint import format_size, resolve
from surgery.conversion import execute, make_plan
from surgery.conversion.plan import PreparedPlan, needed_bytes
from surgery.errors import OutputBusyError, PlanRefusedError, SurgeryError, VerificationError
from surgery.zoo.fingerprints import fingerprint, source_fingerprint

# How long to wait for the processes of a run that was just killed to let go of the output.
_PATIENCE_SECONDS = 20.0
_BETWEEN_REPORTS_SECONDS = 0.2
_LONGEST_MESSAGE = 4000

Tell = Callable[..., None]


def main() -> None:
    """Do what the first line of stdin says, as one JSON object; events go to stdout, one JSON line each."""
    request = json.loads(sys.stdin.readline())
    # Libraries may print: what they say goes to the log, and only events to the pipe.
    pipe = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    lock = threading.Lock()

    def tell(kind: str, **content: Any) -> None:
        with lock:
            pipe.write(json.dumps({"kind": kind, **content}) + "\n")
            pipe.flush()

    threading.Thread(target=_die_with_parent, daemon=True).start()
    # Ctrl-C of the terminal is the starter's business; it asks with SIGTERM, which cleans up as an exception does.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _stop)
    try:
        tell("done", **work(request, tell))
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
        import traceback

        traceback.print_exc()
        tell("failed", why="unexpected", message=_short(f"{type(error).__name__}: {error}"))


def work(request: Mapping[str, Any], tell: Tell) -> dict[str, Any]:
    """Convert and verify one item.

    Args:
        request: what :func:`surgery.zoo.item_process.request_for` gives.
        tell: called with a kind of event and its content.

    Returns:
        What goes into the ledger beside the item's name.

    Raises:
        SurgeryError: whatever is wrong with the item; no output is left then.
    """
    if request["is_hub"]:
        tell("stage", stage="fetching")
    source = resolve(request["source"], request["revision"])
    prepared = make_plan(source.folder, request["operations"], allow_unverified=request["allow_unverified"])
    found = source_fingerprint(prepared.checkpoint)
    if request["source_fingerprint"] not in (None, found):
        raise PlanRefusedError("the source has changed since this run began", hint="Run it again.")
    need = needed_bytes(prepared, request["placement"])
    if request["disk"] is not None and need > request["disk"]:
        raise PlanRefusedError(f"needs {format_size(need)} of disk, its limit is {format_size(request['disk'])}")
    result: dict[str, Any] = {
        "fingerprint": fingerprint(found, request["work"]),
        "plan": prepared.plan.hash,
        "commit": source.commit,
        "family": prepared.plan.source["model_type"],
        "bytes": prepared.checkpoint.disk_bytes,
    }

    def check(folder: Path) -> None:
        result["verdict"], result["checks"] = _verify(request, source.folder, folder, tell)

    done = _patiently(lambda: _execute(request, prepared, tell, check if request["verify"] != "none" else None))
    placed = sorted(set(done.values()))
    return {**result, "placed": ", ".join(placed)}


def _execute(
    request: Mapping[str, Any], prepared: PreparedPlan, tell: Tell, check: Callable[[Path], None] | None
) -> Mapping[str, str]:
    tell("stage", stage="converting")
    last = [0.0]

    def on_bytes(done: int, total: int) -> None:
        now = time.monotonic()
        if done >= total or now - last[0] > _BETWEEN_REPORTS_SECONDS:
            last[0] = now
            tell("bytes", done=done, total=total)

    output = Path(request["output"])
    result = execute(
        prepared, output, mode=request["placement"], force=request["force"], on_bytes=on_bytes, check=check
    )
    return result.placed


def _verify(request: Mapping[str, Any], source: Path, folder: Path, tell: Tell) -> tuple[str, int]:
    """Verify the staged folder; its record goes into it, under the name that it will have."""
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


def _patiently(task: Callable[[], Mapping[str, str]]) -> Mapping[str, str]:
    """Try again for a while where another process has the output: it may be one that is just being killed."""
    until = time.monotonic() + _PATIENCE_SECONDS
    while True:
        try:
            return task()
        except OutputBusyError:
            if time.monotonic() > until:
                raise
            time.sleep(0.2)


class _StopError(BaseException):
    """SIGTERM, as an exception that nothing but `main` catches."""


def _stop(*_: object) -> None:
    raise _StopError


def _die_with_parent() -> None:
    # Not sys.stdin: a thread that waits in it holds its lock, on which the interpreter then dies at its own end.
    while os.read(0, 65536):
        pass
    # The pipe was closed: by a starter that no longer wants anything from us, or that is dead.
    if os.name == "posix" and os.getpgrp() == os.getpid():
        os.killpg(os.getpgrp(), signal.SIGKILL)
    os._exit(1)


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST_MESSAGE else text[:_LONGEST_MESSAGE] + " ..."


if __name__ == "__main__":
    main()
