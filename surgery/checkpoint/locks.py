"""One run at a time on one output folder.

The lock belongs to an open file, so the system releases it when its process dies, however it dies. Where a file
system has no such locks (some cluster mounts), the mere existence of the file is the lock; a run that was killed
there leaves it behind, and the error says which file to delete.
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
        """Take the lock without waiting.

        Raises:
            OutputBusyError: another run holds it.
            CheckpointError: the lock file cannot be made.
        """
        for _ in range(_TRIES):
            try:
                self._descriptor = self._open()
            except OSError as error:
                if error.errno in _UNSUPPORTED:
                    self._by_existence()
                    return
                raise self._busy() from error
            if self._is_current():
                return
            # The holder before us deleted the file between our opening and locking it.
            os.close(self._descriptor)
            self._descriptor = None
        raise self._busy()

    def release(self) -> None:
        """Give the lock up and delete its file. Harmless when it is not held."""
        if self._descriptor is None:
            return
        descriptor, self._descriptor = self._descriptor, None
        if sys.platform == "win32":  # an open file cannot be deleted there
            os.close(descriptor)
            self._delete()
        else:  # deleted while held: nobody can lock the old file and believe it is the current one
            self._delete()
            os.close(descriptor)

    def _open(self) -> int:
        try:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o644)
        except OSError as error:
            raise CheckpointError(
                f"Nothing can be written in {quote(str(self._path.parent))}: {error.strerror}."
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

    def _by_existence(self) -> None:
        marker = self._path.with_name(self._path.name + ".held")
        self._delete()
        try:
            descriptor = os.open(marker, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError as error:
            raise OutputBusyError(
                f"Another run is working on {self._what}, or one was killed.",
                hint=f"This file system has no locks. If no run is going, delete {marker.name} beside it.",
            ) from error
        except OSError as error:
            raise CheckpointError(f"{marker.name} cannot be made: {error.strerror}.") from error
        self._path, self._descriptor = marker, descriptor

    def _busy(self) -> OutputBusyError:
        return OutputBusyError(
            f"Another run is working on {self._what}.", hint="Wait for it to end, or choose another output."
        )

    def _delete(self) -> None:
        # Left behind it does no harm: an unheld lock file is simply locked anew.
        with contextlib.suppress(OSError):
            self._path.unlink()


def is_held(path: Path) -> bool:
    """Whether a run holds the lock of this name; nothing is written.

    To ask means to lock a left-over file for a moment. Where a file system has no locks, a marker that a killed run
    left behind counts as held, as it does for :class:`FileLock`.
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
