"""Placement of unchanged files in a new folder, as cheaply as the file system allows."""

import contextlib
import errno
import os
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from surgery.checkpoint.names import quote
from surgery.errors import CheckpointError

if sys.platform == "linux":
    import fcntl

PlacementMode = Literal["auto", "copy", "link"]
PlacementResult = Literal["reflink", "copied", "linked"]
OnBytes = Callable[[int], None]

_CHUNK = 8 * 1024 * 1024  # bytes between two progress reports
_BLOCK = 4 * 1024 * 1024  # bytes in memory if the kernel cannot copy
_FICLONE = 0x40049409  # linux/fs.h: _IOW(0x94, 9, int)
# "Not supported here", in contrast to "the disk is full" or "the disk fails".
_NOT_HERE = {
    errno.EBADF,
    errno.EINVAL,
    errno.ENOSYS,
    errno.ENOTTY,
    errno.EOPNOTSUPP,
    errno.EPERM,
    errno.EXDEV,
    errno.ETXTBSY,
}


def place_file(
    source: Path, target: Path, mode: PlacementMode = "auto", on_bytes: OnBytes | None = None
) -> PlacementResult:
    """Place the content of `source` under the new name `target`; returns how.

    ``auto`` shares the blocks if the file system can (reflink), and else copies in the kernel; ``copy`` always copies;
    ``link`` creates a hard link. If the source is a link, its target is placed (the blobs of the hub cache). The source
    is opened for reading only. `on_bytes` is called with the number of bytes placed. Missing parents of the target are
    created.

    Raises:
        CheckpointError: the source is missing, not a regular file, or changes during the copy; the target exists or
            cannot be written (disk full); a hard link between the two is not possible.
    """
    try:
        content = source.resolve(strict=True)
        status = content.stat()
        if not stat.S_ISREG(status.st_mode):
            raise CheckpointError(f"{quote(source.name)} is not a regular file")
        target.parent.mkdir(parents=True, exist_ok=True)
        if mode == "link":
            placed = _link(content, target)
        else:
            return _copy(content, target, share=mode == "auto", on_bytes=on_bytes)
    except (OSError, RuntimeError) as error:  # RuntimeError: a link that points to itself
        reason = getattr(error, "strerror", None) or str(error)
        raise CheckpointError(f"{quote(source.name)} cannot be placed as {quote(str(target))}: {reason}") from error
    if on_bytes is not None:
        on_bytes(status.st_size)
    return placed


def _link(content: Path, target: Path) -> PlacementResult:
    try:
        target.hardlink_to(content)
    except OSError as error:
        if error.errno not in {errno.EXDEV, errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EACCES}:
            raise
        why = "they are on different file systems" if error.errno == errno.EXDEV else error.strerror
        raise CheckpointError(
            f"{quote(target.name)} cannot be a hard link to the file of the source: {why}",
            hint="Copy instead of linking, or choose an output on the file system of the source.",
        ) from error
    return "linked"


def _copy(content: Path, target: Path, *, share: bool, on_bytes: OnBytes | None) -> PlacementResult:
    reading = os.open(content, os.O_RDONLY | getattr(os, "O_BINARY", 0))
    try:
        # O_EXCL: an existing name could be a link into the source.
        writing = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
        try:
            size = os.fstat(reading).st_size
            if share and _reflink(reading, writing):
                placed: PlacementResult = "reflink"
                if on_bytes is not None:
                    on_bytes(size)
            else:
                placed = "copied"
                _copy_bytes(reading, writing, size, on_bytes)
            if os.fstat(writing).st_size != size or os.fstat(reading).st_size != size:
                raise CheckpointError(f"{quote(content.name)} changed while it was copied")
        except BaseException:  # Ctrl-C too: an incomplete file must not look complete
            os.close(writing)
            target.unlink(missing_ok=True)
            raise
        os.close(writing)
    finally:
        os.close(reading)
    return placed


def _reflink(reading: int, writing: int) -> bool:
    if sys.platform != "linux":
        return False
    try:
        fcntl.ioctl(writing, _FICLONE, reading)
    except OSError as error:
        if error.errno not in _NOT_HERE:
            raise
        return False
    return True


def _copy_bytes(reading: int, writing: int, size: int, on_bytes: OnBytes | None) -> None:
    """Copy by the first method that works here; each continues where the one before it stopped."""
    done = 0
    for method in _methods():
        try:
            while done < size:
                count = method(reading, writing, done, min(_CHUNK, size - done))
                if not count:
                    break
                _start_disk_write(writing, done, count)
                done += count
                if on_bytes is not None:
                    on_bytes(count)
        except OSError as error:
            if error.errno not in _NOT_HERE:
                raise
            continue
        if done >= size:
            return
    # The caller compares the sizes and reports a source that was truncated.


def _start_disk_write(writing: int, offset: int, count: int) -> None:
    """Start the write to the disk now, because the final fsync waits for all of it and the disk would be idle.

    Linux starts to write pages that it is told are not needed, and keeps them in memory until they are written. Other
    systems do less on this advice, so it is not given there.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError):  # without the advice fsync writes everything
            os.posix_fadvise(writing, offset, count, os.POSIX_FADV_DONTNEED)


def _methods() -> list[Callable[[int, int, int, int], int]]:
    methods: list[Callable[[int, int, int, int], int]] = []
    if hasattr(os, "copy_file_range"):
        methods.append(_copy_file_range)
    if sys.platform == "linux":
        methods.append(_sendfile)
    methods.append(_read_write)
    return methods


def _copy_file_range(reading: int, writing: int, offset: int, count: int) -> int:
    return os.copy_file_range(reading, writing, count, offset, offset)


def _sendfile(reading: int, writing: int, offset: int, count: int) -> int:
    os.lseek(writing, offset, os.SEEK_SET)
    return os.sendfile(writing, reading, offset, count)


def _read_write(reading: int, writing: int, offset: int, count: int) -> int:
    os.lseek(reading, offset, os.SEEK_SET)
    os.lseek(writing, offset, os.SEEK_SET)
    block = os.read(reading, min(count, _BLOCK))
    left = memoryview(block)
    while left:
        left = left[os.write(writing, left) :]
    return len(block)
