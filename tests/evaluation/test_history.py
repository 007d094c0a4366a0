"""Training logs are found, and a broken log never stops a measurement."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from surgery.evaluation import training_history

ROWS = [{"step": 1, "loss": 3.0}, {"step": 2, "loss": 2.5}]


def _write(folder: Path, history: Any) -> None:
    (folder / "surgery").mkdir()
    (folder / "surgery" / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (folder / "surgery" / "history.json").write_text(history if isinstance(history, str) else json.dumps(history))


@pytest.mark.parametrize("wrap", [lambda entries: entries, lambda entries: {"schema": 1, "entries": entries}])
def test_logs_are_found(tmp_path: Path, wrap: Any) -> None:
    _write(tmp_path, wrap([{"step": "finetune", "log": "log.jsonl"}, {"step": "convert"}]))
    assert training_history(tmp_path) == [{"label": "finetune", "rows": ROWS}]


@pytest.mark.parametrize(
    "history", ["{", "3", [3], [{"log": "missing"}], [{"log": "../../x"}], [{"log": 7}], {"entries": None}]
)
def test_a_broken_history_gives_no_runs(tmp_path: Path, history: Any) -> None:
    _write(tmp_path, history)
    assert training_history(tmp_path) == []


def test_no_history(tmp_path: Path) -> None:
    assert training_history(tmp_path) == []


def test_what_is_no_number_becomes_a_gap(tmp_path: Path) -> None:
    _write(tmp_path, [{"log": "log.jsonl"}])
    (tmp_path / "surgery" / "log.jsonl").write_text('{"step": 1, "loss": NaN}\n')
    assert training_history(tmp_path) == [{"label": "training", "rows": [{"step": 1, "loss": None}]}]
