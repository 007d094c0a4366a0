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
    (run,) = training_history(tmp_path)
    assert (run["label"], run["rows"]) == ("finetune", ROWS)


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
    (run,) = training_history(tmp_path)
    assert (run["label"], run["rows"]) == ("training", [{"step": 1, "loss": None}])


def test_what_a_reader_must_know_of_a_training(tmp_path: Path) -> None:
    """The tokens, the controls of the comparison, and the texts of the recipe."""
    difference = {"value": -0.02, "low": -0.03, "high": -0.01}
    comparison = {
        "models": [{"name": "recovered"}, {"name": "temperature", "note": None}],
        "differences": [{"of": "recovered", "minus": "temperature", "difference": difference}],
    }
    entry = {"log": "log.jsonl", "tokens": 512, "recipe": "recipe.yaml", "comparison": comparison}
    _write(tmp_path, [entry])
    recipe = "data: {text: [a/*.txt, b.txt], sources: [{kind: text, path: c}, {kind: hub, id: x}]}\n"
    (tmp_path / "surgery" / "recipe.yaml").write_text(recipe)
    (run,) = training_history(tmp_path)
    assert run["tokens"] == 512 and run["controls"] == [{"name": "temperature", **difference}]
    assert run["texts"] == ["a/*.txt", "b.txt", "c"]


@pytest.mark.parametrize("recipe", ["data: 3", "[", "data: {sources: 3}", "- 1", "data: &a [*a]", "\x00"])
def test_a_broken_recipe_names_no_texts(tmp_path: Path, recipe: str) -> None:
    _write(tmp_path, [{"log": "log.jsonl", "recipe": "recipe.yaml"}])
    (tmp_path / "surgery" / "recipe.yaml").write_text(recipe)
    assert training_history(tmp_path)[0]["texts"] == []
