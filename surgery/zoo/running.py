"""A run of a zoo: lock, ledger, plan, schedule, summary."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from surgery.checkpoint import CONFIG_NAME, load_json, quote, repair_output
from surgery.checkpoint.locks import FileLock, is_held
from surgery.errors import CheckpointError, SurgeryError, UsageError
from surgery.zoo.engines import Engine, LocalEngine
from surgery.zoo.items import Item, expand
from surgery.zoo.ledger import Ledger, LedgerState, new_run_id, read_ledger
from surgery.zoo.manifest import Manifest, read_manifest
from surgery.zoo.outputs import check_is_folder
from surgery.zoo.plan import ZooPlan, plan_zoo
from surgery.zoo.schedule import OnEvent, Schedule
from surgery.zoo.summaries import PAGE_MARK, PAGE_NAME, SUMMARY_KIND, SUMMARY_NAME, summarize

STATE_FOLDER = ".surgery-zoo"
_LARGEST_SUMMARY = 500_000_000
# The mark of a page stands above its table.
_LONGEST_HEAD = 20_000
EngineName = Literal["local", "ray"]


@dataclass(frozen=True)
class Zoo:
    """A manifest with the items and places that follow from it.

    Attributes:
        manifest: what was read.
        name: of the manifest's file, without its ending.
        items: every item.
        output: the folder of all outputs.
    """

    manifest: Manifest
    name: str
    items: tuple[Item, ...]
    output: Path

    @property
    def ledger(self) -> Path:
        """Where the ledger lies."""
        return self.output / STATE_FOLDER / "ledger.jsonl"

    @property
    def lock(self) -> Path:
        """Names the lock that a run holds as long as it lives."""
        return self.output / STATE_FOLDER / "lock"

    @property
    def is_begun(self) -> bool:
        """Whether anything was run; raises what :func:`read_ledger` does."""
        return read_ledger(self.ledger).run is not None

    def plan(self, *, force: bool = False, only_failed: bool = False) -> ZooPlan:
        """What it costs now; see :func:`plan_zoo`."""
        return self._plan(read_ledger(self.ledger), force=force, only_failed=only_failed)

    def _plan(self, state: LedgerState, *, force: bool, only_failed: bool) -> ZooPlan:
        return plan_zoo(self.manifest, self.items, state, output=self.output, force=force, only_failed=only_failed)

    def summary(self) -> dict[str, Any]:
        """What the ledger says of every item, as plain data, once its output was looked at."""
        active = is_held(self.lock)  # before the ledger: a run that ends between the two is not called dead
        return summarize(self.name, self.output, self.items, read_ledger(self.ledger), active=active)


def open_zoo(path: str | Path) -> Zoo:
    """Read a manifest and work out its items.

    Raises:
        ManifestError, UsageError: as :func:`read_manifest` and :func:`expand`; or the output is a file.
    """
    path = Path(path)
    manifest = read_manifest(path)
    base = path.resolve().parent
    output = (base / Path(manifest.output).expanduser()).resolve()
    check_is_folder(output)  # before the items, which are held against it
    items = tuple(expand(manifest, base))
    return Zoo(manifest, path.stem, items, output)


def zoo_status(path: str | Path) -> dict[str, Any]:
    """The summary of a zoo that may be running: reads the manifest and the ledger, writes nothing."""
    return open_zoo(path).summary()


def run_zoo(
    zoo: Zoo,
    *,
    engine: EngineName = "local",
    address: str | None = None,
    force: bool = False,
    only_failed: bool = False,
    on_plan: Callable[[ZooPlan], None] | None = None,
    on_event: OnEvent | None = None,
) -> dict[str, Any]:
    """Do what is not done yet, and return the summary.

    A run that was killed is gone on with: what failed in it is left until it has ended. After that, a further run
    tries again what failed.

    Args:
        zoo: what :func:`open_zoo` gives.
        engine: ``local`` or ``ray``.
        address: of a Ray cluster; without it one is begun on this machine.
        force: replace outputs that the ledger does not know, or that were made from something else.
        only_failed: do only what failed before.
        on_plan: told the plan before any work.
        on_event: told every event of the ledger, and ``stage`` and ``bytes`` of items as they run.

    Raises:
        CheckpointError: the output cannot be written, or its ledger is broken.
        OutputBusyError: another run works on it.
        UsageError: Ray is asked for and not installed; the output holds a model, or pages of something else.
    """
    tell = on_event or (lambda event: None)
    folder = zoo.ledger.parent
    _check_output(zoo)
    try:
        (folder / "logs").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(f"The output {zoo.output} cannot be written: {error.strerror}.") from error
    with working(zoo) as (ledger, state):
        resumes = state.run is not None and not state.run_ended
        run = str(state.run) if resumes else new_run_id()
        plan = zoo._plan(state, force=force, only_failed=only_failed)
        if on_plan is not None:
            on_plan(plan)
        chosen = _engine(engine, address, zoo)
        schedule = Schedule(chosen, ledger, run=run, logs=folder / "logs", retries=zoo.manifest.retries, on_event=tell)
        tell(ledger.write("run", run=run, engine=chosen.name, resumed=resumes, items=len(plan.rows)))
        _settle(zoo, plan, state, schedule, run)
        if schedule.carry_out(plan.of("ready")):
            tell(ledger.write("ended", run=run))
    return zoo.summary()


@contextlib.contextmanager
def working(zoo: Zoo) -> Iterator[tuple[Ledger, LedgerState]]:
    """The zoo to ourselves: its ledger, to write to, and what the ledger says so far.

    Raises:
        CheckpointError: the ledger is broken, or cannot be written.
        OutputBusyError: another run works on it.
    """
    lock = FileLock(zoo.lock, f"the zoo in {zoo.output.name}")
    lock.acquire()
    try:
        with Ledger(zoo.ledger) as ledger, terminated_as_interrupted():
            yield ledger, read_ledger(zoo.ledger)
    finally:
        lock.release()


def _check_output(zoo: Zoo) -> None:
    """Other folders may lie beside the outputs, but the summary must not replace a stranger's files."""
    for name in (CONFIG_NAME, SUMMARY_NAME, PAGE_NAME):
        if (zoo.output / name).exists() and not zoo.ledger.is_file() and not _is_ours(zoo.output / name):
            raise UsageError(
                f"The output {quote(str(zoo.output))} was not made by this tool: it holds {name}.",
                hint="Choose another folder for `output` in the manifest.",
            )


def _is_ours(path: Path) -> bool:
    """Whether a summary or its page was written by an earlier run, whose ledger was moved away since."""
    if path.name == SUMMARY_NAME:
        with contextlib.suppress(SurgeryError):
            return load_json(path, limit=_LARGEST_SUMMARY).get("kind") == SUMMARY_KIND
    elif path.name == PAGE_NAME:
        with contextlib.suppress(OSError), path.open("rb") as file:
            return PAGE_MARK.encode() in file.read(_LONGEST_HEAD)
    return False


def _settle(zoo: Zoo, plan: ZooPlan, state: LedgerState, schedule: Schedule, run: str) -> None:
    """Write down what needs no work: what a kill left complete, and what is refused."""
    for item in zoo.items:
        entry = state.entries.get(item.name)
        if entry is not None and entry.status == "started":
            # Where something is in the way, the item itself meets it and says so.
            with contextlib.suppress(SurgeryError):
                repair_output(item.output)
    for row in plan.rows:
        entry = state.entries.get(row.item.name)
        if row.state == "done" and (entry is None or entry.status != "done"):
            known = entry if entry is not None and row.source is None else None
            fingerprint = known.fingerprint if known is not None else row.fingerprint
            schedule.write("done", row, fingerprint=fingerprint, recovered=True, bytes=row.bytes, family=row.family)
        elif row.state == "refused" and not (
            entry is not None and (entry.status, entry.run, entry.event.get("message")) == ("failed", run, row.reason)
        ):
            schedule.write("failed", row, why="refused", message=row.reason, hint=row.hint or None)


def _engine(name: EngineName, address: str | None, zoo: Zoo) -> Engine:
    if name == "ray":
        from surgery.zoo.cluster import RayEngine

        return RayEngine(zoo.manifest.parallel, address=address)
    return LocalEngine(zoo.manifest.parallel, zoo.output)


@contextlib.contextmanager
def terminated_as_interrupted() -> Iterator[None]:
    """SIGTERM stops a run as Ctrl-C does; a second one of either, while items clean up, ends it at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    if not callable(before):  # the command line has one that does so, and knows the exit code
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
