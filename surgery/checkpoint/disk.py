"""Disk space, and writes that are known to be on the disk."""

import os
import shutil
import sys
import tempfile
from pathlib import Path

from surgery.checkpoint.names import quote
from surgery.errors import CheckpointError


def free_bytes(path: Path) -> int:
    """Free bytes on the file system of `path`, which need not exist yet.

    Raises:
        CheckpointError: the file system gives no answer.
    """
    try:
        return shutil.disk_usage(_nearest(path)).free
    except (OSError, ValueError) as error:
        raise CheckpointError(f"the free disk space at {path} cannot be determined: {error}") from error


def require_space(path: Path, needed: int) -> None:
    """Check before any work that `needed` bytes are free at `path`.

    Raises:
        CheckpointError: they are not; the message has both numbers.
    """
    free = free_bytes(path)
    if free < needed:
        raise CheckpointError(
            f"{needed:,} bytes ({format_size(needed)}) are needed at {path}, {free:,} ({format_size(free)}) are free",
            hint="Free some disk space, choose an output on another disk, or use hard links instead of copies.",
        )


def check_writable(folder: Path) -> None:
    """Check that a folder, which need not exist yet, is writable: create and remove a temporary folder there.

    A long run calls this first, so that it cannot fail at its end.

    Raises:
        CheckpointError: the folder is not writable.
    """
    place = _nearest(folder)
    try:
        with tempfile.TemporaryDirectory(dir=place, prefix=".surgery-"):
            pass
    except OSError as error:
        raise CheckpointError(
            f"nothing can be written in {quote(str(folder))}: {quote(str(place))}: {error.strerror}"
        ) from error


def _nearest(path: Path) -> Path:
    """The path if it exists, or else its first parent that does."""
    place = path.absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    return place


def format_size(count: int) -> str:
    """A number of bytes in decimal units: ``1.5 GB``."""
    size = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def fsync_file(path: Path) -> None:
    """Wait until the content of a file is on the disk.

    Raises:
        OSError: the disk is full or fails.
    """
    if sys.platform == "win32":
        if path.stat().st_nlink > 1:
            return  # fsync needs write access there, and the other hard link may be a source
        descriptor = os.open(path, os.O_RDWR)
    else:
        descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_folder(path: Path) -> None:
    """Wait until the entries of a folder are on the disk; Windows has no such call.

    Raises:
        OSError: the disk is full or fails.
    """
    if sys.platform == "win32":
        return
    fsync_file(path)


def fsync_tree(root: Path) -> None:
    """Wait until `root` and every file and folder in it is on the disk.

    Raises:
        OSError: the disk is full or fails.
    """
    for here, _, files in os.walk(root, topdown=False):
        for name in files:
            fsync_file(Path(here, name))
        fsync_folder(Path(here))
