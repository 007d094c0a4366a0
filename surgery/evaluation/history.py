"""The training logs stored in a checkpoint, as plain rows for curves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from surgery.checkpoint import safe_relative
from surgery.checkpoint.record import HISTORY_NAME, RECORD_FOLDER
from surgery.errors import CheckpointError

_LARGEST_LOG = 256 * 1024 * 1024


def training_history(folder: Path) -> list[dict[str, Any]]:
    """Training runs in ``folder/surgery/history.json``, each ``{"label": str, "rows": [dict, ...]}``.

    A history that is missing or cannot be read gives no runs: a measurement does not fail because of it.
    """
    try:
        history = json.loads((folder / HISTORY_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    entries = history.get("entries") if isinstance(history, dict) else history
    runs = []
    for entry in entries if isinstance(entries, list) else []:
        if not isinstance(entry, dict) or "log" not in entry:
            continue
        rows = _read_rows(folder / RECORD_FOLDER, entry["log"])
        if rows:
            label = next((str(entry[key]) for key in ("label", "step", "trained") if key in entry), "training")
            runs.append({"label": label, "rows": rows})
    return runs


def _no_number(name: str) -> None:
    """NaN and infinities become None, a gap in the curve."""


def _read_rows(folder: Path, name: object) -> list[dict[str, Any]]:
    try:
        path = folder / safe_relative(name)
        if not path.is_file() or path.stat().st_size > _LARGEST_LOG:
            return []
        rows = [
            json.loads(line, parse_constant=_no_number)
            for line in path.read_text(encoding="utf-8").splitlines()
            if line.strip()
        ]
    except (OSError, ValueError, CheckpointError):
        return []
    return [row for row in rows if isinstance(row, dict)]
