"""The zoo: a manifest with its items and folders, its plan, its summary, and exclusive access to its ledger."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from surgery.checkpoint.locks import FileLock, is_held
from surgery.result_table import ResultTable, ShownAsTable
from surgery.zoo.items import Item, expand
from surgery.zoo.ledger import Ledger, LedgerState, read_ledger
from surgery.zoo.manifest import Manifest, read_manifest
from surgery.zoo.outputs import STATE_FOLDER, check_is_folder
from surgery.zoo.plan import ZooPlan, plan_zoo
from surgery.zoo.summaries import ZooSummary, summarize


@dataclass(frozen=True)
class Zoo(ShownAsTable):
    """A manifest with its items and folders.

    Attributes:
        manifest: the manifest.
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
        """Path of the ledger."""
        return self.output / STATE_FOLDER / "ledger.jsonl"

    @property
    def lock(self) -> Path:
        """Path of the lock file; a run holds the lock until it ends."""
        return self.output / STATE_FOLDER / "lock"

    @property
    def is_begun(self) -> bool:
        """Whether a run was ever started.

        Raises:
            CheckpointError: as :func:`read_ledger`.
        """
        return read_ledger(self.ledger).run is not None

    def plan(self, *, force: bool = False, only_failed: bool = False, state: LedgerState | None = None) -> ZooPlan:
        """The plan of the zoo, from ``state`` or else from the ledger as it is now; see :func:`plan_zoo`."""
        state = read_ledger(self.ledger) if state is None else state
        return plan_zoo(self.manifest, self.items, state, output=self.output, force=force, only_failed=only_failed)

    def to_table(self) -> ResultTable:
        """The summary as a table."""
        return self.summary().to_table()

    def summary(self) -> ZooSummary:
        """The state of every item, from the ledger and a look at its output, as plain data."""
        active = is_held(self.lock)  # before the ledger is read: a run that ends in between is not called killed
        return summarize(self.name, self.output, self.items, read_ledger(self.ledger), active=active)


def open_zoo(path: str | Path) -> Zoo:
    """Read a manifest and expand its items.

    Raises:
        ManifestError, UsageError: as :func:`read_manifest` and :func:`expand`; or the output is a file.
    """
    path = Path(path)
    manifest = read_manifest(path)
    base = path.resolve().parent
    output = (base / Path(manifest.output).expanduser()).resolve()
    check_is_folder(output)  # before the items are compared with it
    items = tuple(expand(manifest, base))
    return Zoo(manifest, path.stem, items, output)


def zoo_status(path: str | Path) -> ZooSummary:
    """The summary of a zoo, also while a run is active; reads the manifest and the ledger, writes nothing."""
    return open_zoo(path).summary()


@contextlib.contextmanager
def locked_ledger(zoo: Zoo) -> Iterator[tuple[Ledger, LedgerState]]:
    """Lock the zoo; gives its ledger for writing, and the state that it holds.

    Raises:
        CheckpointError: the ledger is broken or cannot be written.
        OutputBusyError: another run holds the lock.
    """
    lock = FileLock(zoo.lock, f"the zoo in {zoo.output.name}")
    lock.acquire()
    try:
        with Ledger(zoo.ledger) as ledger, terminated_as_interrupted():
            yield ledger, read_ledger(zoo.ledger)
    finally:
        lock.release()


@contextlib.contextmanager
def terminated_as_interrupted() -> Iterator[None]:
    """Treat SIGTERM as Ctrl-C; a second one of either, while items clean up, ends the run at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    if not callable(before):  # the command line has its own handler, which knows the exit code
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
