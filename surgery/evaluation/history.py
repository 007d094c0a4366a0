"""The training logs stored in a checkpoint, as plain rows for curves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from surgery.checkpoint import safe_relative
from surgery.checkpoint.record import HISTORY_NAME, RECORD_FOLDER
from surgery.errors import CheckpointError
from surgery.evaluation.control import controls_of

_LARGEST_LOG = 256 * 1024 * 1024
_LARGEST_RECIPE = 1024 * 1024


def training_history(folder: Path) -> list[dict[str, Any]]:
    """Training runs in ``folder/surgery/history.json``, each ``{"label": str, "rows": [dict, ...]}``.

    Beside these: ``tokens`` of the training, ``controls`` as `controls_of` gives them, ``control``, the name of the
    control that the model itself is, and ``texts``, the files and globs that the recipe names.

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
            runs.append({"label": label, "rows": rows, **_facts(folder / RECORD_FOLDER, entry)})
    return runs


def _facts(place: Path, entry: dict[str, Any]) -> dict[str, Any]:
    """What a reader of a result must know of a training."""
    tokens = entry.get("tokens")
    return {
        "tokens": tokens if isinstance(tokens, int) else None,
        "controls": controls_of(entry.get("comparison")),
        "control": entry["control"] if isinstance(entry.get("control"), str) else None,
        "texts": _texts(place, entry.get("recipe")),
    }


def _texts(place: Path, recipe: object) -> list[str]:
    """The texts that a recorded recipe names; none where it cannot be read."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        path = place / safe_relative(recipe)
        if not path.is_file() or path.stat().st_size > _LARGEST_RECIPE:
            return []
        data = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))["data"]
        named = [data.get("text"), *(source.get("path") for source in data.get("sources") or ())]
    except (OSError, ValueError, TypeError, KeyError, AttributeError, CheckpointError, YAMLError):
        return []
    flat = [text for one in named for text in (one if isinstance(one, list) else [one])]
    return [text for text in flat if isinstance(text, str) and text]


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
