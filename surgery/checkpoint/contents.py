"""The contents of a model folder: every regular file by its relative name, and nothing from outside the folder."""

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
    """Sizes of the regular files by relative POSIX name, and the names of the hidden folders, which are skipped."""

    sizes: dict[str, int] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)


def list_contents(folder: Path) -> FolderContents:
    """List a model folder without reading its files.

    Hidden folders (``.git``, ``.cache``) belong to other tools: they are skipped, and listed in `skipped`.

    Raises:
        CheckpointError: a link leaves the folder, or points to a folder or to nothing; a file is special or has a name
            that is not UTF-8; the folder cannot be read, is too deep or holds too many files.
    """
    contents = FolderContents()
    root = folder.resolve()
    try:
        _walk(root, "", root, snapshot_of(root), contents)
    except (OSError, RuntimeError) as error:  # RuntimeError: a link that leads to itself
        raise CheckpointError(f"the model folder cannot be read: {error}") from error
    contents.sizes = dict(sorted(contents.sizes.items()))
    contents.skipped.sort()
    return contents


def _walk(here: Path, prefix: str, root: Path, snapshot: Snapshot | None, contents: FolderContents) -> None:
    if prefix.count("/") > _DEEPEST:
        raise CheckpointError(f"the model folder is nested deeper than {_DEEPEST} folders")
    with os.scandir(here) as entries:
        for entry in entries:
            name = prefix + entry.name
            if not _is_utf8(name):
                raise CheckpointError(f"the file name {quote(name)} is not valid UTF-8", hint="Rename the file.")
            is_hidden = entry.name.startswith(".")
            if entry.is_dir(follow_symlinks=is_hidden):  # a hidden link to a folder is skipped like the folder
                if is_hidden:
                    contents.skipped.append(name)
                else:
                    _walk(here / entry.name, name + "/", root, snapshot, contents)
                continue
            if len(contents.sizes) >= _MOST_FILES:
                raise CheckpointError(f"the model folder holds more than {_MOST_FILES:,} files")
            contents.sizes[name] = _size_inside(here / entry.name, name, root, snapshot)


def _size_inside(path: Path, name: str, root: Path, snapshot: Snapshot | None) -> int:
    """The size of a file, after checks that it is regular and belongs to the folder."""
    status = path.lstat()
    if stat.S_ISLNK(status.st_mode):
        target = path.resolve()
        inside = target.is_relative_to(root) or (snapshot is not None and target.parent == snapshot.blobs)
        if not inside:
            raise CheckpointError(
                f"{quote(name)} is a link that leaves the model folder",
                hint="If the file belongs to the model, copy it here; if not, move the link out of the model folder. "
                "Only the hub cache may hold links that leave, into its own blobs.",
            )
        if not target.exists():
            raise CheckpointError(
                f"{quote(name)} is a link to a file that does not exist",
                hint="The download is incomplete or was cleaned up. Download the model again.",
            )
        status = target.stat()
        if stat.S_ISDIR(status.st_mode):
            raise CheckpointError(
                f"{quote(name)} is a link to a folder, and such a link is not followed",
                hint="If the folder belongs to the model, copy it here; if not, move the link out of the model folder.",
            )
    if not stat.S_ISREG(status.st_mode):
        raise CheckpointError(f"{quote(name)} is a special file (a pipe, a socket or a device)", hint="Remove it.")
    return status.st_size


def _is_utf8(name: str) -> bool:
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
