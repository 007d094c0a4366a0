"""Interrupting and resuming: exact, and only from complete checkpoints."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from surgery.errors import CheckpointError, UsageError
from surgery.recovery import TrainingStoppedError, finetune
from surgery.training.folder import TrainingFolder
from surgery.training.progress import MARKER
from tests.recovery.conftest import Converted, MakeRecipe, crash

SHARD = "surgery-ssmax.safetensors"
TRAINED = "trained-model.safetensors"


@pytest.fixture(scope="module")
def undisturbed(converted: Converted, texts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of the run that the others must equal."""
    output = tmp_path_factory.mktemp("undisturbed") / "out"
    finetune(_long(output, converted(), texts))
    return output


@pytest.fixture
def make_long(converted: Converted, texts: Path, tmp_path: Path) -> Callable[[], dict[str, Any]]:
    return lambda: _long(tmp_path / "out", converted(), texts)


MakeLong = Callable[[], dict[str, Any]]


def _long(output: Path, model: Path, texts: Path) -> dict[str, Any]:
    """Dropout, accumulation and several passes over the text, so that any lost state shows."""
    return {
        "model": str(model),
        "output": str(output),
        "train": {"what": "scale+lora", "rank": 2, "dropout": 0.2},
        "optimizer": {"scale_lr": 0.02, "lr": 1e-2, "warmup": 2},
        "budget": {"steps": 7},
        "batch": {"sequences": 2, "accumulation": 2},
        "evaluation": {"every": 3, "sequences": 4},
        "checkpoints": {"every": 2, "keep": 2},
        "data": {"text": str(texts), "held_out": 0.6, "sequence_length": 48},
    }


def _rows(output: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (output / "surgery" / "log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def _same(one: Path, other: Path) -> None:
    assert _rows(one) == _rows(other)
    for name in (SHARD, TRAINED, "adapter/adapter_model.safetensors"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


@pytest.mark.parametrize("at", [1, 5])
def test_resume_after_a_crash_is_exact(make_long: MakeLong, undisturbed: Path, tmp_path: Path, at: int) -> None:
    crash(make_long(), step=at)
    assert not (tmp_path / "out").exists()
    assert finetune(make_long(), resume=True).resumed_from == {1: None, 5: 4}[at]
    _same(undisturbed, tmp_path / "out")


@pytest.mark.skipif(threading.current_thread() is not threading.main_thread(), reason="signals reach the main thread")
@pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_finishes_the_step_and_saves(
    make_long: MakeLong, undisturbed: Path, tmp_path: Path, kind: signal.Signals
) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(make_long()))  # JSON is YAML
    events: list[dict[str, Any]] = []

    running = 0

    def stop(event: dict[str, Any]) -> None:
        nonlocal running
        events.append(event)
        running += 1
        if event["event"] == "step" and event["step"] == 3:
            os.kill(os.getpid(), kind)
        assert running == 1, "a handler that writes a line is not called within it"
        running -= 1

    before = signal.getsignal(kind)
    with pytest.raises(TrainingStoppedError, match="after step 4 of 7") as caught:
        finetune(path, on_progress=stop)
    assert caught.value.exit_code == 130
    assert f"surgery finetune {path} --resume" in str(caught.value)
    assert signal.getsignal(kind) is before
    assert (tmp_path / "out.training" / "checkpoint-4" / MARKER).is_file()
    assert events[-1] == {"event": "checkpoint", "step": 4}
    signalled = next(number for number, event in enumerate(events) if event.get("step") == 3)
    assert events[signalled + 1] == {"event": "stopping", "step": 4, "checkpoint": 2}, "at once, in the same step"
    assert finetune(path, resume=True).resumed_from == 4
    _same(undisturbed, tmp_path / "out")


@pytest.mark.slow
def test_kill_nine(make_long: MakeLong, undisturbed: Path, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(json.dumps(make_long()))
    program = (
        "import os, signal, sys; from surgery.recovery import finetune\n"
        "def kill(event):\n"
        "    if event['event'] == 'step' and event['step'] == 4: os.kill(os.getpid(), signal.SIGKILL)\n"
        "finetune(sys.argv[1], on_progress=kill)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "recipe.yaml")], capture_output=True, check=False
    )
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    assert finetune(tmp_path / "recipe.yaml", resume=True).resumed_from == 2
    _same(undisturbed, tmp_path / "out")


def test_resume_refuses_what_would_not_be_the_same_run(
    make_recipe: MakeRecipe, tmp_path: Path, texts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = shutil.copytree(texts, tmp_path / "texts")
    recipe = make_recipe(data={"text": str(own)}, checkpoints={"every": 1, "keep": 1})
    with pytest.raises(UsageError, match="no interrupted run"):
        finetune(recipe, resume=True)

    crash(recipe, step=3)
    training = tmp_path / "out.training"
    assert sorted(path.name for path in training.glob("checkpoint-*")) == ["checkpoint-2"], "keep: 1"
    with pytest.raises(UsageError, match="a run that did not finish"):
        finetune(recipe)
    with pytest.raises(UsageError, match="another recipe: seed"):
        finetune({**recipe, "seed": 1}, resume=True)
    with monkeypatch.context() as two:
        two.setattr("surgery.training.folder.process_count", lambda: 2)
        with pytest.raises(UsageError, match=r"had 1 process\(es\), and this run has 2"):
            finetune(recipe, resume=True)
    (own / "00.txt").write_text("other words than before, and more of them than there were")
    with pytest.raises(UsageError, match="another data"):
        finetune(recipe, resume=True)
    shutil.copy(texts / "00.txt", own / "00.txt")

    # A checkpoint without its marker does not count.
    half = shutil.copytree(training / "checkpoint-2", training / "checkpoint-3")
    (half / MARKER).unlink()
    assert finetune({**recipe, "checkpoints": {"every": 3, "keep": 1}}, resume=True).resumed_from == 2
    assert not training.exists()


def test_only_the_writing_is_left(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    recipe = make_recipe()

    crash(recipe, event="writing")
    result = finetune(recipe, resume=True)
    assert result.resumed_from == result.steps == 4
    finetune(make_recipe(output=str(tmp_path / "plain")))
    assert _rows(tmp_path / "plain") == _rows(tmp_path / "out")
    assert (tmp_path / "plain" / SHARD).read_bytes() == (tmp_path / "out" / SHARD).read_bytes()


def test_one_run_at_a_time(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    with TrainingFolder(tmp_path / "out").alone(), pytest.raises(CheckpointError, match=r"out\.training"):
        finetune(make_recipe())
    assert [path.name for path in tmp_path.iterdir()] == []


def test_start_over_with_force(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    (tmp_path / "out.training").mkdir()
    (tmp_path / "out.training" / "mine.txt").write_text("not yours")
    with pytest.raises(UsageError, match="was not created by surgery"):
        finetune(make_recipe(), force=True)
    (tmp_path / "out.training" / "mine.txt").unlink()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").write_text("old")
    with pytest.raises(UsageError, match="not empty"):
        finetune(make_recipe())
    with pytest.raises(UsageError, match="was not written by surgery"):
        finetune(make_recipe(), force=True)
    (tmp_path / "out" / "old").unlink()
    finetune(make_recipe())
    (tmp_path / "out" / "old").write_text("old")
    finetune(make_recipe(), force=True)
    assert not (tmp_path / "out" / "old").exists()
