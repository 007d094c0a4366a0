"""How far a training came: the marker that makes a checkpoint count."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from surgery.checkpoint import dump_json, fsync_folder, fsync_tree, load_json

MARKER = "complete.json"
STREAM_NAME = "stream.json"


@dataclass(frozen=True)
class Progress:
    """What a checkpoint's marker says: ``step`` of the whole run, of which ``stage_step`` in the stage."""

    step: int
    tokens: int
    seconds: float
    stage: int = 0
    stage_step: int = 0


def mark_complete(checkpoint: Path, progress: Progress) -> None:
    """Bring a checkpoint to the disk, then write its marker, and bring that to the disk too."""
    fsync_tree(checkpoint)
    write_synced(checkpoint / MARKER, asdict(progress))
    fsync_folder(checkpoint)
    fsync_folder(checkpoint.parent)


def progress_of(checkpoint: Path) -> Progress:
    """What the marker of a complete checkpoint says."""
    return Progress(**load_json(checkpoint / MARKER))


def stream_of(checkpoint: Path) -> dict[str, Any] | None:
    """Where the stream of rows stood at a checkpoint; None where the rows are all at hand."""
    path = checkpoint / STREAM_NAME
    return load_json(path) if path.is_file() else None


def write_synced(path: Path, content: dict[str, Any]) -> None:
    """Write JSON so that the file is whole after a power cut, or the old one is."""
    temporary = path.with_suffix(".new")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(dump_json(content))
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    fsync_folder(path.parent)
