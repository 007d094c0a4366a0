"""The code that travels in a converted checkpoint, as its record has it and as it lies in the folder."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from surgery.checkpoint import load_json
from surgery.checkpoint.record import HISTORY_NAME
from surgery.operations.code import ENTRY_NAME

# SHA-256 of the one file that travelled before there was a file for each operation; it still runs.
SINGLE_FILE = "2eb35633fba4b8663e03c68228b00c8d40d2887c52684dc95845fe8318f27474"


@dataclass(frozen=True)
class CodeFile:
    """A file of travelling code in a folder: name, number of lines, and SHA-256."""

    name: str
    lines: int
    sha256: str


def recorded_code(folder: Path, plan: Mapping[str, Any] | None) -> dict[str, str | None]:
    """The files of code that a converted checkpoint should hold: name -> SHA-256, None if its record has no hash.

    Args:
        folder: a converted checkpoint.
        plan: its plan as plain data, or None if it has none.
    """
    records = code_records(folder, plan)
    return dict(records[-1]) if records else {ENTRY_NAME: None}


def code_records(folder: Path, plan: Mapping[str, Any] | None) -> list[dict[str, str]]:
    """SHA-256 of the files of code by name, as the conversion and each refresh recorded them, oldest first."""
    history = load_json(folder / HISTORY_NAME) if (folder / HISTORY_NAME).is_file() else {}
    entries = history.get("entries")
    records = [(plan or {}).get("code")]
    records += [entry.get("files") for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []
    return [
        {name: str(value) for name, value in record.items() if isinstance(name, str) and "/" not in name}
        for record in records
        if isinstance(record, Mapping) and record
    ]


def code_files(folder: Path, plan: Mapping[str, Any]) -> list[CodeFile]:
    """The recorded files of code that lie in a folder, the one that config.json names first."""
    names = sorted(recorded_code(folder, plan), key=lambda name: (name != ENTRY_NAME, name))
    found = [(name, (folder / name).read_bytes()) for name in names if (folder / name).is_file()]
    return [CodeFile(name, content.count(b"\n"), hashlib.sha256(content).hexdigest()) for name, content in found]
