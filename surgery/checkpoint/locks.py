"""Locks: one run at a time on one output folder.

The operating system holds the lock on an open file and releases it when the process ends, even by a kill. Some file
systems (cluster mounts) have no such locks: there the existence of a file is the lock, a killed run leaves the file
behind, and the error names the file to delete.

Why not ``filelock``, which is installed anyway (versions 3.10 and 4.3 were tried): it leaves the lock file behind on
release, so one file would stay beside every output. If locking fails with ENOLCK, EOPNOTSUPP or EINVAL, which cluster
mounts return, 3.10 reports a busy lock and 4.3 raises the bare OSError; only ENOSYS has a replacement. It cannot tell
whether a lock is held without creating the file, which ``surgery zoo status`` must not do. What it would save here is
the call of flock or msvcrt.
"""

import contextlib
import errno
import os
import sys
from pathlib import Path

from surgery.checkpoint.names import quote
from surgery.errors import CheckpointError, OutputBusyError

_UNSUPPORTED = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL}
_TRIES = 20


class FileLock:
    """An exclusive lock named by a file, which exists only while the lock is held."""

    def __init__(self, path: Path, what: str) -> None:
        self._path = path
        self._what = what
        self._descriptor: int | None = None

    def acquire(self) -> None:
        """Acquire the lock without waiting.

        Raises:
            OutputBusyError: another run holds the lock.
            CheckpointError: the lock file cannot be created.
        """
        for _ in range(_TRIES):
            try:
                self._descriptor = self._open()
            except OSError as error:
                if error.errno in _UNSUPPORTED:
                    self._acquire_marker()
                    return
                raise self._busy() from error
            if self._is_current():
                return
            # The previous holder deleted the file after it was opened here and before it was locked.
            os.close(self._descriptor)
            self._descriptor = None
        raise self._busy()

    def release(self) -> None:
        """Release the lock and delete its file. Without effect if the lock is not held."""
        if self._descriptor is None:
            return
        descriptor, self._descriptor = self._descriptor, None
        if sys.platform == "win32":  # an open file cannot be deleted there
            os.close(descriptor)
            self._delete()
        else:  # deleted while held, so that no other run locks the old file and takes it for the current one
            self._delete()
            os.close(descriptor)

    def _open(self) -> int:
        try:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o644)
        except OSError as error:
            raise CheckpointError(
                f"nothing can be written in {quote(str(self._path.parent))}: {error.strerror}"
            ) from error
        try:
            _lock(descriptor)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def _is_current(self) -> bool:
        assert self._descriptor is not None
        try:
            return os.path.samestat(os.fstat(self._descriptor), self._path.stat())
        except FileNotFoundError:
            return False

    def _acquire_marker(self) -> None:
        marker = self._path.with_name(self._path.name + ".held")
        self._delete()
        try:
            descriptor = os.open(marker, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError as error:
            raise OutputBusyError(
                f"another run is working on {self._what}, or one was killed",
                hint=f"This file system has no locks. If no run is active, delete {marker.name} beside the output.",
            ) from error
        except OSError as error:
            raise CheckpointError(f"{marker.name} cannot be created: {error.strerror}") from error
        self._path, self._descriptor = marker, descriptor

    def _busy(self) -> OutputBusyError:
        return OutputBusyError(
            f"another run is working on {self._what}", hint="Wait for it to end, or choose another output."
        )

    def _delete(self) -> None:
        # A lock file that stays does no harm: the next run locks it again.
        with contextlib.suppress(OSError):
            self._path.unlink()


def is_held(path: Path) -> bool:
    """Whether a run holds the lock of this name; nothing is written.

    A lock file that a killed run left is locked for a moment. On a file system without locks the marker of a killed run
    counts as held, as for :class:`FileLock`.
    """
    if path.with_name(path.name + ".held").exists():
        return True
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
    except OSError:
        return False
    try:
        _lock(descriptor)
    except OSError as error:
        return error.errno not in _UNSUPPORTED
    finally:
        os.close(descriptor)
    return False


if sys.platform == "win32":
    import msvcrt

    def _lock(descriptor: int) -> None:
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)

else:
    import fcntl

    def _lock(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
