"""Whether a folder may be written as an output, and repairing what a killed run left around it.

Around an output OUT three kinds of siblings can exist, all made by `staging`:

    OUT.partial-<id>    a new folder being written, or an old one being deleted: never worth keeping
    OUT.replaced-<id>   the old OUT, whole, moved aside while the new one takes its name
    .OUT.lock           held by the run that works on OUT

A kill leaves one of these states; `repair` (under the lock) brings each back to "OUT and nothing else":

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
from surgery.checkpoint.hub_cache import snapshot_of
from surgery.checkpoint.names import quote, quoted_list
from surgery.checkpoint.record import HISTORY_NAME, PLAN_NAME
from surgery.errors import CheckpointError, UsageError

_SIBLING = re.compile(r"(?P<out>.+)\.(?P<kind>partial|replaced)-(?P<id>[0-9a-f]{12})", re.DOTALL)


def sibling(out: Path, kind: str, run: str) -> Path:
    """The name beside `out` that a run uses: ``partial`` or ``replaced``."""
    return out.with_name(f"{out.name}.{kind}-{run}")


def new_run_id() -> str:
    """A fresh id for a run's siblings."""
    return secrets.token_hex(6)


def siblings(out: Path, kind: str) -> list[Path]:
    """The folders that runs on `out` have left beside it (links are not followed and not listed)."""
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
    """Check that `out` may be written, without touching anything; returns it with links resolved.

    With `force` an earlier output is replaced, and nothing else: a folder that carries our record, or, where an output
    carries none, one that holds no other files than `known_files` names (relative, with ``/``).

    Raises:
        UsageError: it is a file or would lie in one, a non-empty folder without `force`, the source or something inside
            or around it, or a folder that must not be replaced (home, the current one or one above, one that is no
            earlier output).
        CheckpointError: it cannot be looked at.
    """
    given = quote(str(out))
    try:
        out = out.expanduser().resolve()
        occupied = out.exists() and (not out.is_dir() or any(out.iterdir()))
    except (OSError, ValueError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise CheckpointError(f"The output {given} cannot be used: {reason}.") from error
    if not out.name or _SIBLING.fullmatch(out.name):
        raise UsageError(f"{given} cannot be the name of an output.", hint="Choose another name.")
    if source is not None:
        _check_apart(out, source.resolve(), given)
    if (above := _file_above(out)) is not None:
        raise UsageError(
            f"The output {given} would lie in {quote(above.name)}, which is a file.", hint="Choose another folder."
        )
    if not occupied:
        return out
    if not out.is_dir():
        raise UsageError(f"The output {given} exists and is not a folder.", hint="Choose another name.")
    strange = _no_output(out, known_files)
    if not force and strange:  # --force would not help
        raise UsageError(
            f"The output {given} is not empty: it holds {strange}, and is no earlier output of this tool.",
            hint="Choose another folder.",
        )
    if not force:
        raise UsageError(
            f"The output {given} is not empty: it holds an earlier output.",
            hint="Choose another folder, or replace this one with --force.",
        )
    for kept in (Path.cwd(), Path.home()):
        if kept.resolve().is_relative_to(out):
            raise UsageError(
                f"The output {given} holds your home or the current folder and is not replaced.",
                hint="Choose another folder.",
            )
    if strange:
        raise UsageError(
            f"The output {given} is no earlier output of this tool and is not replaced; it holds {strange}.",
            hint="Choose another folder, or empty this one yourself.",
        )
    return out


def _file_above(out: Path) -> Path | None:
    """The first thing above that exists, where it is no folder."""
    above = next((path for path in out.parents if path.exists()), None)
    return above if above is not None and not above.is_dir() else None


def _no_output(out: Path, known_files: Collection[str] | None) -> str | None:
    """What shows that a folder was not written by us, for a message; None if it was."""
    if (out / PLAN_NAME).is_file() or (out / HISTORY_NAME).is_file():
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
    """Undo or finish what killed runs left around `out`. The caller holds the lock, so all of them are dead.

    Raises:
        CheckpointError: the old and a newer folder both claim the name, or a leftover cannot be removed.
    """
    try:
        for old in siblings(out, "replaced"):
            unfinished = sibling(out, "partial", old.name.rpartition("-")[2])
            if not out.exists():
                old.rename(out)
            elif unfinished.exists():
                # The new folder never took the name, so somebody else has made this OUT since.
                raise CheckpointError(
                    f"An interrupted replacement moved the old {out.name} to {old.name}, and there is a new "
                    f"{out.name} since.",
                    hint=f"Keep one: delete or rename {old.name}, then run again.",
                )
            else:
                discard(out, old)
            fsync_folder(out.parent)
        for leftover in siblings(out, "partial"):
            shutil.rmtree(leftover)
    except OSError as error:
        raise CheckpointError(
            f"The leftovers of an earlier run beside {out.name} cannot be cleared: {error.strerror}."
        ) from error


def discard(out: Path, old: Path) -> None:
    """Delete a folder that was moved aside. It is renamed first, so that a ``replaced`` one is always whole."""
    trash = sibling(out, "partial", old.name.rpartition("-")[2])
    old.rename(trash)
    fsync_folder(out.parent)
    shutil.rmtree(trash)


def _check_apart(out: Path, source: Path, given: str) -> None:
    snapshot = snapshot_of(source)
    # All of a cached repository is the source: its blobs are shared by its snapshots.
    whole = source if snapshot is None else snapshot.repository
    if out == source:
        raise UsageError(f"The output {given} is the source itself.", hint="Choose another folder.")
    if out.is_relative_to(whole):
        raise UsageError(f"The output {given} lies inside the source.", hint="Choose a folder outside it.")
    if source.is_relative_to(out):
        raise UsageError(f"The source lies inside the output {given}.", hint="Choose a folder that does not hold it.")
