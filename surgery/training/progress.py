"""The progress of a training, and the marker of a complete checkpoint."""

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
    """The content of a checkpoint's marker: ``step`` of the whole run, and ``stage_step`` within the stage."""

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
    """The content of the marker of a complete checkpoint."""
    return Progress(**load_json(checkpoint / MARKER))


def stream_of(checkpoint: Path) -> dict[str, Any] | None:
    """The position of the stream of rows at a checkpoint; None without a stream."""
    path = checkpoint / STREAM_NAME
    return load_json(path) if path.is_file() else None


def write_synced(path: Path, content: dict[str, Any]) -> None:
    """Write JSON atomically: after a power cut the file is the new or the old one."""
    temporary = path.with_suffix(".new")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(dump_json(content))
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    fsync_folder(path.parent)
