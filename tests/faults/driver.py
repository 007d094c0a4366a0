"""A process without threads that forks a child for every fault of a task, and reports what was wrong after it.

``python -m tests.faults.driver TASK SOURCE PLACE STRIDE``: the audit events of Python (open for writing, rename,
create, link, remove) and wrapped calls (fsync, copies in the kernel) give each step of the task that changes the file
system. A fault is then injected before each step in turn, by kill -9 or by an error of the system, and all promises are
checked afterwards.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from surgery.conversion import convert, execution, revert
from surgery.conversion.execution import execute
from surgery.conversion.plan import make_plan
from surgery.errors import SurgeryError
from surgery.verification import verify
from surgery.zoo.item_process import request_for
from surgery.zoo.worker import convert_item
from surgery.zoo.zoo import open_zoo
from tests.conversion.conftest import tree
from tests.zoo.conftest import write_manifest

_GROWING = {"open", "os.mkdir", "os.link", "os.symlink", "fsync", "copy_file_range"}
_CHANGING = {"os.rename", "os.remove", "os.rmdir", "os.truncate", *_GROWING}
_WRITE = os.O_WRONLY | os.O_RDWR | os.O_CREAT


@dataclass(frozen=True)
class Fault:
    """A fault at a step: a signal, or an error of the system at this step alone or from this step on."""

    name: str
    code: int | None
    lasts: bool
    events: frozenset[str] = frozenset(_CHANGING)


FAULTS = (
    Fault("kill", None, False),
    Fault("disk full", errno.ENOSPC, True, frozenset(_GROWING)),
    Fault("quota", errno.EDQUOT, False, frozenset(_GROWING)),
    Fault("input/output error", errno.EIO, False),
    Fault("read-only", errno.EROFS, True),
    Fault("not permitted", errno.EACCES, True),
)


class Steps:
    """Counts the steps inside a folder, and injects the fault at the chosen one."""

    def __init__(self, place: Path, chosen: int | None = None, fault: Fault | None = None) -> None:
        self.seen: list[str] = []
        self._place = str(place)
        self._chosen = chosen
        self._fault = fault
        self._armed = False

    def arm(self) -> None:
        """Start counting; cannot be undone, so only in a child process."""
        self._armed = True
        sys.addaudithook(self._audited)
        for name in ("fsync", "copy_file_range"):
            if hasattr(os, name):
                setattr(os, name, self._wrapped(name, getattr(os, name)))

    def _audited(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self._armed or event not in _CHANGING:
            return
        if event == "open":
            path, _, flags = arguments
            if not isinstance(flags, int) or not flags & _WRITE:
                return
        else:
            path = arguments[0]
        if isinstance(path, bytes):
            path = os.fsdecode(path)
        # A path relative to an open folder (from shutil.rmtree) belongs to the task: nothing else is removed here.
        if isinstance(path, int) or (path.startswith(os.sep) and not path.startswith(self._place)):
            return
        self._step(event)

    def _wrapped(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            self._step(name)
            return real(*arguments)

        return call

    def _step(self, event: str) -> None:
        number = len(self.seen)
        self.seen.append(event)
        what = self._fault
        if what is None or self._chosen is None or number < self._chosen:
            return
        if what.code is None:
            os.kill(os.getpid(), signal.SIGKILL)
        elif event in what.events and (what.lasts or number == self._chosen):
            raise OSError(what.code, os.strerror(what.code))


class Task:
    """One command: the preparation of its folder, its work there, and the files that it may leave."""

    forced = False

    def __init__(self, source: Path) -> None:
        self.source = source

    def prepare(self, place: Path) -> None:
        """Create the files that exist before."""

    def perform(self, place: Path) -> None:
        """Run the command, also after an interrupted run."""
        raise NotImplementedError


class Fresh(Task):
    """Conversion into a new output."""

    def perform(self, place: Path) -> None:
        """Run the command."""
        execute(make_plan(self.source, [{"name": "ssmax"}]), place / "out", force=self.forced)


class Forced(Fresh):
    """Conversion that replaces an existing output."""

    forced = True

    def prepare(self, place: Path) -> None:
        """An older output."""
        convert(self.source, form="logn", output=place / "out")


class Reverted(Task):
    """Reversion to the source."""

    def prepare(self, place: Path) -> None:
        """A converted checkpoint."""
        convert(self.source, output=place / "converted")

    def perform(self, place: Path) -> None:
        """Run the command."""
        revert(place / "converted", output=place / "out", force=self.forced)


class Verified(Task):
    """Verification, which writes a record into a checkpoint and its card."""

    forced = True

    def prepare(self, place: Path) -> None:
        """A converted checkpoint."""
        convert(self.source, output=place / "out")

    def perform(self, place: Path) -> None:
        """Run the command."""
        record = place / "out" / "surgery" / "verify.json"
        if record.is_file() and record.read_bytes():
            json.loads(record.read_bytes())  # never half of one
            record.unlink()  # so that a further run gives the same bytes
        verify(place / "out", against=self.source, files_only=True, name="out")


class Zoo(Task):
    """One item of a zoo: converted, verified, renamed."""

    forced = True  # the zoo itself decides that an output is replaced

    def perform(self, place: Path) -> None:
        """Run the command."""
        # The user writes the manifest; it lies outside the folder of the faults.
        row = open_zoo(write_manifest(self.source.parent / "manifests", models=[{"path": str(self.source)}],
                                      output=str(place), layout="out")).plan(force=True).rows[0]  # fmt: skip
        convert_item(request_for(row), lambda kind, **content: None)


TASKS: dict[str, type[Task]] = {
    "fresh": Fresh, "forced": Forced, "reverted": Reverted, "verified": Verified, "zoo": Zoo,
}  # fmt: skip


def main() -> None:
    """Inject faults and check; the report goes to stdout as JSON."""
    name, source, place, stride = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4])
    execution.require_space = lambda *_: None  # space that was free may be used a moment later
    os.fsync = lambda descriptor: None  # a kill loses nothing that the system has; hundreds of them would take minutes
    (source.parent / "manifests").mkdir(exist_ok=True)
    task = TASKS[name](source)
    before = tree(source)
    without_fault = place / "without_fault"
    steps = _child_steps(task, without_fault)
    new = tree(without_fault / "out")
    (place / "first").mkdir()
    task.prepare(place / "first")
    old = tree(place / "first" / "out") if (place / "first" / "out").exists() else None
    wrong: list[str] = []
    outcomes: dict[str, int] = {}
    for what in FAULTS:
        for number in range(0, len(steps), stride if what.code is not None or stride == 1 else max(1, stride // 2)):
            if what.code is not None and steps[number] not in what.events and not what.lasts:
                continue
            here = place / f"{what.name.replace('/', ' ')}-{number}"
            here.mkdir()
            task.prepare(here)
            said = _run_with_fault(task, here, number, what)
            outcomes[said.partition(":")[0]] = outcomes.get(said.partition(":")[0], 0) + 1
            label = f"{name}, {what.name} before step {number} ({steps[number]}): "
            wrong += [label + promise for promise in _broken_promises(task, here, said, old, new)]
            if tree(source) != before:
                raise SystemExit(f"{label}the source was changed")
            shutil.rmtree(here)
    json.dump({"steps": steps, "outcomes": outcomes, "wrong": wrong}, sys.stdout)


def _broken_promises(task: Task, here: Path, said: str, old: Any, new: Any) -> list[str]:
    """The broken promises after a fault, and after the next run without a fault."""
    found = []
    if said.startswith(("unclear", "odd")):
        found.append(said)
    out = here / "out"
    state = tree(out) if out.exists() else None
    if isinstance(task, Verified) and state is not None:
        for path in ("surgery/verify.json", "README.md"):  # each is old or new, by itself
            if state.get(path) not in (new[path], old.get(path)):
                found.append(f"{path} is neither the old nor the new one")
        state = {**state, **{path: new[path] for path in ("surgery/verify.json", "README.md")}}
        state = {path: content for path, content in state.items() if not path.endswith(".partial")}
        if state != new:
            found.append("another file was changed")
    # The old folder may have been moved aside; the next run gives it its name back.
    elif state not in (old, new) and not (state is None and any(here.glob("out.replaced-*"))):
        found.append("half an output")
    if said == "done" and state != new:
        found.append("it said done, and it is not")
    try:
        if out.exists() and not task.forced:
            if tree(out) != new:
                found.append("an output that is not the new one")
        else:
            task.perform(here)
    except SurgeryError as error:
        found.append(f"the next run does not succeed: {error}")
    if not out.exists() or tree(out) != new:
        found.append("the next run does not give the new output")
    left = [path.name for path in here.iterdir() if path.name not in ("out", "converted", ".surgery-zoo")]
    kept = [path for path in left if not (not task.forced and path.startswith((".out.lock", "out.partial")))]
    if kept:
        found.append(f"left over: {kept}")
    return found


def _child_steps(task: Task, place: Path) -> list[str]:
    place.mkdir()
    task.prepare(place)
    reading, writing = os.pipe()
    if os.fork() == 0:
        steps = Steps(place)
        steps.arm()
        task.perform(place)
        steps._armed = False
        os.write(writing, json.dumps(steps.seen).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as file:
        seen = json.load(file)
    os.wait()
    return list(seen)


def _run_with_fault(task: Task, place: Path, number: int, what: Fault) -> str:
    """How it ended: ``done``, ``killed``, ``refused: message``, or something that should not be."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        steps = Steps(place, number, what)
        try:
            steps.arm()
            task.perform(place)
            said = "done"
        except SurgeryError as error:
            said = f"refused: {error.message}" if 10 < len(error.message) < 2000 else f"unclear: {error.message!r}"
        except BaseException:
            said = f"odd: {traceback.format_exc()[-1500:]}"
        steps._armed = False
        os.write(writing, said.encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as file:
        said = file.read()
    _, status = os.waitpid(pid, 0)
    if what.code is None:
        return "killed" if os.waitstatus_to_exitcode(status) == -signal.SIGKILL else f"odd: not killed: {said}"
    return said or f"odd: the child ended with {status}"


if __name__ == "__main__":
    main()
