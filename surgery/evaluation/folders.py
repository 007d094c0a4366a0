"""Checks of the folders that a report and its finished parts are written to.

A folder of this tool is recognised by its contents: a report by ``evaluation.json``, finished parts by the names of
their folders. An earlier report is replaced only with ``force``; a folder with other files is refused.
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
from surgery.checkpoint.output import check_outside_models
from surgery.errors import UsageError
from surgery.evaluation.store import FOLDER_NAME

EVALUATION = "evaluation.json"
STORE = "results"
# Larger than any evaluation.json of this tool; a larger file of this name is not read.
_MOST_BYTES = 256_000_000


def check_report(folder: Path, *, force: bool = False, beside: Collection[Path] = ()) -> None:
    """Check that a report may be written to a folder, and that the disk is writable; writes nothing.

    The folder may hold finished parts of an earlier or interrupted run: the run resumes from them.

    Args:
        folder: for the report.
        force: an earlier report may be replaced.
        beside: other files that the same run writes and that may be in the folder: the file of events.

    Raises:
        UsageError: the path is a file, or the folder holds an earlier report without ``force``, or other files.
        CheckpointError: the folder is not writable.
    """
    given = quote(str(folder))
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"--output {given} is a file", hint="Pass a folder.")
    check_outside_models(folder, given)
    check_writable(folder)
    if not folder.is_dir():
        return
    if is_evaluation(folder / EVALUATION):
        if force:
            return
        raise UsageError(
            f"the output {given} holds an earlier report",
            hint="Choose another folder, or pass --force to replace the report; finished parts are kept and used.",
        )
    check_store(folder / STORE)
    known = {(folder / STORE).resolve(), *(path.resolve() for path in beside)}
    _refuse(folder, [path.name for path in folder.iterdir() if path.resolve() not in known])


def check_store(folder: Path) -> None:
    """Check that a folder holds finished parts only, or does not exist yet.

    Raises:
        UsageError: the path is a file, or the folder holds other files.
    """
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"--results {quote(str(folder))} is a file", hint="Pass a folder.")
    if folder.is_dir():
        _refuse(folder, [path.name for path in folder.iterdir() if not FOLDER_NAME.fullmatch(path.name)])


def is_evaluation(path: Path) -> bool:
    """Whether a file is an ``evaluation.json`` of this tool."""
    return _read(path).get("kind") == "evaluation"


def written_before(folder: Path) -> list[str]:
    """The names of the files of an earlier report in a folder; empty where there is no report."""
    names = _read(folder / EVALUATION).get("files", [])
    return [name for name in names if isinstance(name, str) and Path(name).name == name] if names else []


def _read(path: Path) -> dict[str, Any]:
    content: Any = None
    with contextlib.suppress(OSError, ValueError, RecursionError):
        if path.is_file() and path.stat().st_size <= _MOST_BYTES:
            content = json.loads(path.read_text(encoding="utf-8"))
    return content if isinstance(content, dict) else {}


def _refuse(folder: Path, other: list[str]) -> None:
    if other:
        raise UsageError(
            f"the folder {quote(str(folder))} holds files that are not part of an evaluation: {quoted_list(other)}",
            hint="Choose an empty or a new folder.",
        )
