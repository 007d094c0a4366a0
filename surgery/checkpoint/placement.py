"""Putting an unchanged file into a new folder as cheaply as the file system allows."""

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

PlacementMode = Literal["auto", "copy", "link"]
PlacementResult = Literal["reflink", "copied", "linked"]
OnBytes = Callable[[int], None]

_CHUNK = 8 * 1024 * 1024  # between two reports of progress
_BLOCK = 4 * 1024 * 1024  # held in memory where there is no copy in the kernel
_FICLONE = 0x40049409  # linux/fs.h: _IOW(0x94, 9, int)
# "Not here", as opposed to "the disk is full" or "the disk is broken".
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
    """Put the content of `source` under the new name `target`, and say how.

    ``auto`` shares the blocks where the file system can (reflink), else copies in the kernel; ``copy`` always copies;
    ``link`` makes a hard link. A link is followed to the file it points to (the hub cache's blobs). The source is
    only ever opened for reading; `on_bytes` is told of the bytes as they are placed. Missing folders of the target are
    made.

    Raises:
        CheckpointError: the source is missing or not a regular file, or changes during the copy; the target exists or
            cannot be written (disk full); hard links are not possible between the two.
    """
    try:
        content = source.resolve(strict=True)
        status = content.stat()
        if not stat.S_ISREG(status.st_mode):
            raise CheckpointError(f"{quote(source.name)} is not a regular file.")
        target.parent.mkdir(parents=True, exist_ok=True)
        if mode == "link":
            placed = _link(content, target)
        else:
            return _copy(content, target, share=mode == "auto", on_bytes=on_bytes)
    except (OSError, RuntimeError) as error:  # RuntimeError: a link that leads to itself
        reason = getattr(error, "strerror", None) or str(error)
        raise CheckpointError(f"{quote(source.name)} cannot be placed as {quote(str(target))}: {reason}.") from error
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
            f"{quote(target.name)} cannot be a hard link to the source's file: {why}.",
            hint="Copy instead of linking, or choose an output on the source's file system.",
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
                raise CheckpointError(f"{quote(content.name)} changed while it was copied.")
        except BaseException:  # Ctrl-C too: half a file must not be taken for a whole one
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
    import fcntl

    try:
        fcntl.ioctl(writing, _FICLONE, reading)
    except OSError as error:
        if error.errno not in _NOT_HERE:
            raise
        return False
    return True


def _copy_bytes(reading: int, writing: int, size: int, on_bytes: OnBytes | None) -> None:
    """Copy with the first way that works here; each goes on where the one before it stopped."""
    done = 0
    for step in _ways():
        try:
            while done < size:
                count = step(reading, writing, done, min(_CHUNK, size - done))
                if not count:
                    break
                _start_writing(writing, done, count)
                done += count
                if on_bytes is not None:
                    on_bytes(count)
        except OSError as error:
            if error.errno not in _NOT_HERE:
                raise
            continue
        if done >= size:
            return
    # The caller compares the sizes and reports a source that has become shorter.


def _start_writing(writing: int, offset: int, count: int) -> None:
    """Let the disk begin now: all of it is waited for in the end, and until then the disk would be idle.

    Linux sends what it is told is not needed to the disk; what is not there yet stays in memory. (Elsewhere the advice
    means less, and is not given.)
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError):  # advice only: where it is not taken, fsync does all of it
            os.posix_fadvise(writing, offset, count, os.POSIX_FADV_DONTNEED)


def _ways() -> list[Callable[[int, int, int, int], int]]:
    ways: list[Callable[[int, int, int, int], int]] = []
    if hasattr(os, "copy_file_range"):
        ways.append(_copy_file_range)
    if sys.platform == "linux":
        ways.append(_sendfile)
    ways.append(_read_write)
    return ways


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
