"""Which folders a report and its finished parts may be written to.

A folder is ours by what lies in it: a report by its ``evaluation.json``, finished parts by the names of their folders.
An earlier report is replaced only where that was asked for; whatever else somebody keeps in a folder is never joined.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from surgery.checkpoint import quote
from surgery.checkpoint.disk import check_writable
from surgery.checkpoint.names import quoted_list
from surgery.errors import UsageError
from surgery.evaluation.store import FOLDER_NAME

EVALUATION = "evaluation.json"
STORE = "results"
# Larger than any evaluation.json of ours; a stranger's file of this name is not read whole.
_MOST_BYTES = 256_000_000


def check_report(folder: Path, *, force: bool = False, beside: Collection[Path] = ()) -> None:
    """Check that a report may be written to a folder, and that the disk takes it; leaves nothing there.

    Finished parts of an earlier or interrupted run may be there already: they are gone on with.

    Args:
        folder: for the report.
        force: an earlier report may be replaced.
        beside: files that the same run writes, and that may lie in the folder: the file of events.

    Raises:
        UsageError: it is a file, holds an earlier report and ``force`` is not given, or holds what is not ours.
        CheckpointError: nothing can be written there.
    """
    given = quote(str(folder))
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"--output {given}: there is a file of this name.", hint="Give a folder.")
    check_writable(folder)
    if not folder.is_dir():
        return
    if is_evaluation(folder / EVALUATION):
        if force:
            return
        raise UsageError(
            f"The output {given} holds an earlier report.",
            hint="Choose another folder, or replace the report with --force (finished parts are kept and used).",
        )
    check_store(folder / STORE)
    ours = {(folder / STORE).resolve(), *(path.resolve() for path in beside)}
    _refuse(folder, [path.name for path in folder.iterdir() if path.resolve() not in ours])


def check_store(folder: Path) -> None:
    """Check that a folder holds finished parts, and nothing else, or that it is not there yet.

    Raises:
        UsageError: it is a file, or holds what is not ours.
    """
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"--results {quote(str(folder))}: there is a file of this name.", hint="Give a folder.")
    if folder.is_dir():
        _refuse(folder, [path.name for path in folder.iterdir() if not FOLDER_NAME.fullmatch(path.name)])


def is_evaluation(path: Path) -> bool:
    """Whether a file is an ``evaluation.json`` of ours."""
    return _read(path).get("kind") == "evaluation"


def written_before(folder: Path) -> list[str]:
    """The names that an earlier report in a folder says it consists of; empty where there is none."""
    names = _read(folder / EVALUATION).get("files", [])
    return [name for name in names if isinstance(name, str) and Path(name).name == name] if names else []


def _read(path: Path) -> dict[str, Any]:
    content: Any = None
    with contextlib.suppress(OSError, ValueError, RecursionError):
        if path.is_file() and path.stat().st_size <= _MOST_BYTES:
            content = json.loads(path.read_text(encoding="utf-8"))
    return content if isinstance(content, dict) else {}


def _refuse(folder: Path, strange: list[str]) -> None:
    if strange:
        raise UsageError(
            f"The folder {quote(str(folder))} holds what is no evaluation of this tool: {quoted_list(strange)}.",
            hint="Choose another folder, or an empty one.",
        )
