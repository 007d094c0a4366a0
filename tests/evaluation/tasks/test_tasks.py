"""Short tasks through lm-eval: the same numbers as its Python API and its command line."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from surgery.errors import UsageError
from surgery.evaluation import evaluate
from surgery.loading import RunOptions

lm_eval = pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed: pip install '.[eval]'")

CPU = RunOptions(device="cpu")


@pytest.fixture(scope="module")
def definitions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A multiple choice of our own: which word is six before."""
    folder = tmp_path_factory.mktemp("tasks")
    rows = []
    for number in range(12):
        cycle = [f"w{(7 * number + 5 * step) % 60}" for step in range(6)]
        choices = [cycle[0], f"w{(7 * number + 31) % 60}"]
        rows.append({"text": " ".join(cycle * 3), "choices": choices, "gold": 0})
    (folder / "copying.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "copying.yaml").write_text(
        f"""\
task: surgery_copying
dataset_path: json
dataset_kwargs:
  data_files:
    test: {folder / "copying.jsonl"}
test_split: test
output_type: multiple_choice
doc_to_text: text
doc_to_choice: choices
doc_to_target: gold
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
"""
    )
    return folder


def _suite(definitions: Path, **part: Any) -> dict[str, Any]:
    own = {"kind": "tasks", "names": ["surgery_copying"], "definitions": str(definitions), **part}
    return {"name": "own", "parts": [own]}


@pytest.mark.slow
def test_the_wrapper_gives_what_the_command_gives(
    trained: Path, shuffled: Path, definitions: Path, tmp_path: Path
) -> None:
    result = evaluate(shuffled, against=trained, suite=_suite(definitions), run=CPU)
    (own,) = result.section("tasks").results
    (score,) = own.scores
    assert score.metric == "surgery_copying: acc,none" and score.examples == 12
    assert score.base_value > 0.9 > score.value and result.verdicts[0].word == "lost"
    assert score.difference.value == pytest.approx(score.value - score.base_value)

    words = shlex.split(own.commands[0])
    assert words[:2] == ["lm-eval", "run"] and f"pretrained={shuffled}" in words[words.index("--model_args") + 1]
    done = subprocess.run(
        [sys.executable, "-m", "lm_eval", *words[1:], "--output_path", str(tmp_path / "out")],
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (written,) = (tmp_path / "out").rglob("results_*.json")
    assert json.loads(written.read_text())["results"]["surgery_copying"]["acc,none"] == score.value


@pytest.mark.slow
def test_equal_models_score_the_same(trained: Path, operated: Path, definitions: Path) -> None:
    result = evaluate(operated, against=trained, suite=_suite(definitions, limit=3), run=CPU)
    (own,) = result.section("tasks").results
    assert own.finding.word == "no difference" and own.scores[0].examples == 3
    assert "trust_remote_code" not in own.commands[0] and "--limit 3" in own.commands[0]


@pytest.mark.early
def test_unknown_tasks_and_folders(trained: Path, definitions: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lm_eval.tasks import TaskManager

    # Without lm-eval's own thousands of definitions, which take long to read.
    monkeypatch.setattr("lm_eval.tasks.TaskManager", partial(TaskManager, include_defaults=False))
    with pytest.raises(UsageError, match="has no task 'walking'"):
        evaluate(trained, suite=_suite(definitions, names=["walking"]), run=CPU)
    with pytest.raises(UsageError, match="no folder 'nowhere'"):
        evaluate(trained, suite=_suite(Path("nowhere")), run=CPU)
