"""Room on the disk, and making sure that what was written is on it."""

import os
import shutil
import sys
import tempfile
from pathlib import Path

from surgery.checkpoint.names import quote
from surgery.errors import CheckpointError


def free_bytes(path: Path) -> int:
    """Free bytes of the file system that `path` is on, or would be on once made.

    Raises:
        CheckpointError: the file system does not answer.
    """
    try:
        return shutil.disk_usage(_nearest(path)).free
    except (OSError, ValueError) as error:
        raise CheckpointError(f"The free space at {path} cannot be found out: {error}.") from error


def require_space(path: Path, needed: int) -> None:
    """Refuse before any work when `path` does not have `needed` bytes free.

    Raises:
        CheckpointError: it has not; the message has both numbers.
    """
    free = free_bytes(path)
    if free < needed:
        raise CheckpointError(
            f"{needed:,} bytes ({format_size(needed)}) are needed at {path}, {free:,} ({format_size(free)}) are free.",
            hint="Free some space, choose an output on another disk, or make hard links instead of copies.",
        )


def check_writable(folder: Path) -> None:
    """Write something where a folder is or will be, and take it away: hours of work must not end in an error.

    Raises:
        CheckpointError: nothing can be written there.
    """
    place = _nearest(folder)
    try:
        with tempfile.TemporaryDirectory(dir=place, prefix=".surgery-"):
            pass
    except OSError as error:
        raise CheckpointError(
            f"Nothing can be written in {quote(str(folder))}: {quote(str(place))}: {error.strerror}."
        ) from error


def _nearest(path: Path) -> Path:
    """The path, or the first folder above it that exists."""
    place = path.absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    return place


def format_size(count: int) -> str:
    """A number of bytes for people, in decimal units."""
    size = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def fsync_file(path: Path) -> None:
    """Wait until a file's content is on the disk.

    Raises:
        OSError: the disk does not take it.
    """
    if sys.platform == "win32":
        if path.stat().st_nlink > 1:
            return  # to flush there means to open for writing, and the other name may be a source's
        descriptor = os.open(path, os.O_RDWR)
    else:
        descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_folder(path: Path) -> None:
    """Wait until a folder's list of names is on the disk; Windows has no such call.

    Raises:
        OSError: the disk does not take it.
    """
    if sys.platform == "win32":
        return
    fsync_file(path)


def fsync_tree(root: Path) -> None:
    """Wait until every file and folder below `root`, and `root` itself, is on the disk.

    Raises:
        OSError: the disk does not take it.
    """
    for here, _, files in os.walk(root, topdown=False):
        for name in files:
            fsync_file(Path(here, name))
        fsync_folder(Path(here))
