"""An output folder that appears whole or not at all.

Everything is written to a sibling of the output, synced to the disk, and renamed. `output` describes the states that a
kill can leave and how the next run repairs them.
"""

import shutil
import sys
from collections.abc import Callable, Collection
from pathlib import Path
from types import TracebackType
from typing import Self

from surgery.checkpoint.disk import fsync_folder, fsync_tree
from surgery.checkpoint.locks import FileLock
from surgery.checkpoint.names import quote
from surgery.checkpoint.output import check_output, discard, new_run_id, repair, sibling
from surgery.errors import CheckpointError

OnStep = Callable[[str], None]


class StagedFolder:
    """Write into `path`, then call `commit()`; without it the ``with`` block leaves nothing behind.

        with StagedFolder(out, source=source) as staged:
            write_json(staged.path / "config.json", config)
            staged.commit()

    `on_step` is called with the name of each completed step: ``locked``, ``repaired``, ``created``, ``synced``,
    ``moved`` (the old folder aside, if there is one), ``renamed``, ``discarded`` (the old folder).
    """

    def __init__(
        self,
        out: Path,
        *,
        force: bool = False,
        source: Path | None = None,
        known_files: Collection[str] | None = None,
        on_step: OnStep | None = None,
    ) -> None:
        """Check the output; nothing is written yet.

        Raises:
            UsageError, CheckpointError: as `check_output`.
        """
        self._force = force
        self._source = source
        self._known_files = known_files
        self._on_step = on_step
        self.out = out
        self.out = self._check()
        self._run = new_run_id()
        self.path = sibling(self.out, "partial", self._run)
        self._lock = _lock_of(self.out)
        self._made_parents: list[Path] = []
        self._committed = False

    def __enter__(self) -> Self:
        """Lock the output, repair the leftovers of a killed run, and create the folder `path`.

        Raises:
            UsageError: the repair restored an output that is not empty, and `force` is not set.
            OutputBusyError: another run holds the lock.
            CheckpointError: the parent folder of the output is not writable.
        """
        try:
            self._make_parents()
            self._lock.acquire()
            self._step("locked")
            repair(self.out)
            self._step("repaired")
            # Checked again, now that no other run can change the output.
            self._check()
            self.path.mkdir()
            self._step("created")
        except OSError as error:
            self._clean()
            raise CheckpointError(
                f"nothing can be written in {quote(str(self.out.parent))}: {error.strerror}"
            ) from error
        except BaseException:
            self._clean()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove uncommitted files, and release the lock."""
        self._clean()

    def commit(self) -> Path:
        """Sync everything to the disk and rename it to the output; returns the output.

        Raises:
            CheckpointError: the disk is full or fails, or another program wrote to the output meanwhile.
        """
        if self._committed:
            return self.out
        try:
            fsync_tree(self.path)
            self._step("synced")
            self._take_name()
        except OSError as error:
            raise CheckpointError(f"{self.out.name} cannot be completed: {error.strerror}") from error
        return self.out

    def _check(self) -> Path:
        return check_output(self.out, force=self._force, source=self._source, known_files=self._known_files)

    def _take_name(self) -> None:
        old = sibling(self.out, "replaced", self._run)
        try:
            if self._force and self.out.exists() and any(self.out.iterdir()):
                self._check()  # files that another program added meanwhile must not be moved
                self.out.rename(old)
                fsync_folder(self.out.parent)
                self._step("moved")
            elif sys.platform == "win32" and self.out.exists():
                self.out.rmdir()  # other systems replace an empty folder by a rename, in one step
            # Without force this fails if the output was filled meanwhile.
            self.path.rename(self.out)
            self._committed = True
        except BaseException:
            if old.exists() and not self.out.exists():
                old.rename(self.out)
            raise
        fsync_folder(self.out.parent)
        self._step("renamed")
        if old.exists():
            discard(self.out, old)
            self._step("discarded")

    def _make_parents(self) -> None:
        parent = self.out.parent
        while not parent.exists():
            self._made_parents.append(parent)
            parent = parent.parent
        self.out.parent.mkdir(parents=True, exist_ok=True)

    def _clean(self) -> None:
        try:
            # The next run removes files that resist; the original error matters more.
            shutil.rmtree(self.path, ignore_errors=True)
        finally:
            self._lock.release()
            if not self._committed:
                for parent in self._made_parents:
                    try:
                        parent.rmdir()
                    except OSError:
                        break

    def _step(self, name: str) -> None:
        if self._on_step is not None:
            self._on_step(name)


def repair_output(out: Path) -> None:
    """Undo or complete the work of killed runs on `out`; nothing else is changed.

    Raises:
        OutputBusyError: another run is working on it.
        CheckpointError: as `repair`.
    """
    out = out.expanduser().resolve()
    lock = _lock_of(out)
    lock.acquire()
    try:
        repair(out)
    finally:
        lock.release()


def _lock_of(out: Path) -> FileLock:
    return FileLock(out.with_name(f".{out.name}.lock"), out.name)
