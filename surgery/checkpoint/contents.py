"""What lies in a model folder: every regular file by its relative name, and nothing from outside it."""

import os
import stat
from dataclasses import dataclass, field
from pathlib import Path

from surgery.checkpoint.hub_cache import Snapshot, snapshot_of
from surgery.checkpoint.names import quote
from surgery.errors import CheckpointError

_DEEPEST = 32
_MOST_FILES = 100_000


@dataclass
class FolderContents:
    """Relative POSIX names of the regular files with their sizes, and of the hidden folders that were passed over."""

    sizes: dict[str, int] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)


def list_contents(folder: Path) -> FolderContents:
    """List a model folder without reading its files.

    Hidden folders (``.git``, ``.cache``) are working data of other tools: passed over, but named in `skipped`.

    Raises:
        CheckpointError: a link leaves the folder, points to a folder or to nothing; a special file; a name that is
            not UTF-8; a folder that cannot be read, is too deep or holds too many files.
    """
    scan = FolderContents()
    root = folder.resolve()
    try:
        _walk(root, "", root, snapshot_of(root), scan)
    except (OSError, RuntimeError) as error:  # RuntimeError: a link that leads to itself
        raise CheckpointError(f"The model folder cannot be read: {error}.") from error
    scan.sizes = dict(sorted(scan.sizes.items()))
    scan.skipped.sort()
    return scan


def _walk(here: Path, prefix: str, root: Path, snapshot: Snapshot | None, scan: FolderContents) -> None:
    if prefix.count("/") > _DEEPEST:
        raise CheckpointError(f"The model folder is deeper than {_DEEPEST} folders, which no real one is.")
    with os.scandir(here) as entries:
        for entry in entries:
            name = prefix + entry.name
            if not _is_utf8(name):
                raise CheckpointError(f"The file name {quote(name)} is not valid UTF-8.", hint="Rename the file.")
            if entry.is_dir(follow_symlinks=False):
                if entry.name.startswith("."):
                    scan.skipped.append(name)
                else:
                    _walk(here / entry.name, name + "/", root, snapshot, scan)
                continue
            if len(scan.sizes) >= _MOST_FILES:
                raise CheckpointError(f"The model folder holds more than {_MOST_FILES:,} files.")
            scan.sizes[name] = _size_inside(here / entry.name, name, root, snapshot)


def _size_inside(path: Path, name: str, root: Path, snapshot: Snapshot | None) -> int:
    """The size of a regular file, once it is certain that it is one and belongs to the folder."""
    status = path.lstat()
    if stat.S_ISLNK(status.st_mode):
        target = path.resolve()
        inside = target.is_relative_to(root) or (snapshot is not None and target.parent == snapshot.blobs)
        if not inside:
            raise CheckpointError(
                f"{quote(name)} is a link that leaves the model folder.",
                hint="Replace it by the file it points to. Only the hub cache may link, into its own blobs.",
            )
        if not target.exists():
            raise CheckpointError(
                f"{quote(name)} is a link to a file that does not exist.",
                hint="The download is incomplete or was cleaned up; fetch the model again.",
            )
        status = target.stat()
        if stat.S_ISDIR(status.st_mode):
            raise CheckpointError(f"{quote(name)} is a link to a folder.", hint="Replace it by the folder itself.")
    if not stat.S_ISREG(status.st_mode):
        raise CheckpointError(f"{quote(name)} is a special file (a pipe, a socket or a device).", hint="Remove it.")
    return status.st_size


def _is_utf8(name: str) -> bool:
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
