"""Outputs: whether a folder may be written, and the repair of the leftovers of a killed run.

Beside an output OUT three kinds of siblings can exist, all created by `staged_folder`:

    OUT.partial-<id>    a new folder that is being written, or an old one that is being deleted: never kept
    OUT.replaced-<id>   the old OUT, complete, moved aside while the new one takes its name
    .OUT.lock           held by the run that works on OUT

A kill leaves one of these states; `repair` (under the lock) turns each into "OUT and nothing else":

    while writing                OUT as before; partial              -> the partial is deleted
    between the two renames      no OUT; replaced; partial           -> the old folder gets its name back
    after the second rename      OUT is the new one; replaced        -> the old folder is deleted
    while deleting the old one   OUT is the new one; partial         -> the partial is deleted
"""

import re
import secrets
import shutil
from collections.abc import Collection
from pathlib import Path

from surgery.checkpoint.disk import fsync_folder
from surgery.checkpoint.folder import CONFIG_NAME
from surgery.checkpoint.hub_cache import snapshot_of
from surgery.checkpoint.names import quote, quoted_list
from surgery.checkpoint.record import OWN_RECORDS
from surgery.errors import CheckpointError, UsageError

_SIBLING = re.compile(r"(?P<out>.+)\.(?P<kind>partial|replaced)-(?P<id>[0-9a-f]{12})", re.DOTALL)


def sibling(out: Path, kind: str, run: str) -> Path:
    """The path beside `out` that a run uses for its ``partial`` or ``replaced`` folder."""
    return out.with_name(f"{out.name}.{kind}-{run}")


def new_run_id() -> str:
    """A new id for the siblings of a run."""
    return secrets.token_hex(6)


def siblings(out: Path, kind: str) -> list[Path]:
    """The folders of one kind that runs on `out` left beside it, without links."""
    if not out.parent.is_dir():
        return []
    found = []
    for path in out.parent.iterdir():
        match = _SIBLING.fullmatch(path.name)
        if match and match["out"] == out.name and match["kind"] == kind and path.is_dir() and not path.is_symlink():
            found.append(path)
    return sorted(found)


def check_output(
    out: Path, *, force: bool = False, source: Path | None = None, known_files: Collection[str] | None = None
) -> Path:
    """Check that `out` may be written, without changing anything; returns its path with links resolved.

    With `force` only an earlier output may be replaced: a folder with a record of surgery, or, for outputs without a
    record, a folder that holds no other files than `known_files` (relative, with ``/``).

    Raises:
        UsageError: it is a file or would lie in one; a non-empty folder without `force`; the source, or inside or
            around it; or a folder that must not be replaced (home, the current folder or its parents, any folder
            that surgery did not write).
        CheckpointError: it cannot be read.
    """
    given = quote(str(out))
    try:
        out = out.expanduser().resolve()
        occupied = out.exists() and (not out.is_dir() or any(out.iterdir()))
    except (OSError, ValueError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise CheckpointError(f"the output {given} cannot be used: {reason}") from error
    if not out.name or _SIBLING.fullmatch(out.name):
        raise UsageError(f"{given} cannot be the name of an output", hint="Choose another name.")
    if source is not None:
        _check_apart(out, source.resolve(), given)
    check_outside_models(out, given)
    if (above := _file_above(out)) is not None:
        raise UsageError(
            f"the output {given} would lie in {quote(above.name)}, which is a file", hint="Choose another folder."
        )
    if not occupied:
        return out
    if not out.is_dir():
        raise UsageError(f"the output {given} exists and is not a folder", hint="Choose another name.")
    foreign = _foreign_files(out, known_files)
    if not force and foreign:  # --force would not help
        raise UsageError(
            f"the output {given} is not empty: it holds {foreign}, and surgery did not write it",
            hint="Choose another folder.",
        )
    if not force:
        raise UsageError(
            f"the output {given} is not empty: it holds an earlier output",
            hint="Choose another folder, or replace this one with --force.",
        )
    for kept in (Path.cwd(), Path.home()):
        if kept.resolve().is_relative_to(out):
            raise UsageError(
                f"the output {given} contains your home folder or the current folder and is not replaced",
                hint="Choose another folder.",
            )
    if foreign:
        raise UsageError(
            f"the output {given} was not written by surgery and is not replaced; it holds {foreign}",
            hint="Choose another folder, or delete its files.",
        )
    return out


def check_outside_models(out: Path, given: str) -> None:
    """Refuse an output inside a model folder: its files would become part of the model, and be uploaded with it.

    Raises:
        UsageError: there is a model above it.
    """
    for above in out.absolute().parents:
        if (above / CONFIG_NAME).is_file() and any(above.glob("*.safetensors")):
            raise UsageError(
                f"the output {given} lies inside the model folder {quote(above.name)}",
                hint="Choose a folder outside it.",
            )


def _file_above(out: Path) -> Path | None:
    """The nearest existing parent, if it is a file."""
    above = next((path for path in out.parents if path.exists()), None)
    return above if above is not None and not above.is_dir() else None


def _foreign_files(out: Path, known_files: Collection[str] | None) -> str | None:
    """The files that show that surgery did not write a folder, as text; None if it did."""
    if any((out / name).is_file() for name in OWN_RECORDS):
        return None
    names = sorted(path.name for path in out.iterdir())
    if known_files is not None:
        names = sorted(
            path.relative_to(out).as_posix()
            for path in out.rglob("*")
            if (path.is_symlink() or not path.is_dir()) and path.relative_to(out).as_posix() not in known_files
        )
    return quoted_list(names) if names else None


def repair(out: Path) -> None:
    """Undo or complete the work of killed runs on `out`. The caller holds the lock, so none of them is active.

    Raises:
        CheckpointError: an old and a newer folder both claim the name, or a leftover cannot be removed.
    """
    try:
        for old in siblings(out, "replaced"):
            unfinished = sibling(out, "partial", old.name.rpartition("-")[2])
            if not out.exists():
                old.rename(out)
            elif unfinished.exists():
                # The new folder never took the name, so another program created this OUT later.
                raise CheckpointError(
                    f"an interrupted replacement moved the old {out.name} to {old.name}, and a new "
                    f"{out.name} was created since",
                    hint=f"Keep one of them: delete or rename {old.name}, then run again.",
                )
            else:
                discard(out, old)
            fsync_folder(out.parent)
        for leftover in siblings(out, "partial"):
            shutil.rmtree(leftover)
    except OSError as error:
        raise CheckpointError(
            f"the leftovers of an earlier run beside {out.name} cannot be removed: {error.strerror}"
        ) from error


def discard(out: Path, old: Path) -> None:
    """Delete a folder that was moved aside. It is renamed first, so that a ``replaced`` folder is always complete."""
    trash = sibling(out, "partial", old.name.rpartition("-")[2])
    old.rename(trash)
    fsync_folder(out.parent)
    shutil.rmtree(trash)


def _check_apart(out: Path, source: Path, given: str) -> None:
    snapshot = snapshot_of(source)
    # The whole cached repository is the source, because its snapshots share their blobs.
    whole = source if snapshot is None else snapshot.repository
    if out == source:
        raise UsageError(f"the output {given} is the source itself", hint="Choose another folder.")
    if out.is_relative_to(whole):
        raise UsageError(f"the output {given} lies inside the source", hint="Choose a folder outside it.")
    if source.is_relative_to(out):
        raise UsageError(f"the source lies inside the output {given}", hint="Choose a folder outside it.")
