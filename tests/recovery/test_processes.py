"""Two processes do what one does with the same global batch, and what cannot be sharded is refused."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from surgery.errors import UsageError
from surgery.recovery import finetune
from surgery.recovery.processes import check_sharding
from tests.recovery.conftest import Converted, MakeRecipe

ROOT = Path(__file__).parents[2]
PROGRAM = """
import json, os, sys
from surgery.recovery import finetune
recipe, resume, at = sys.argv[1], sys.argv[2] == "resume", int(sys.argv[3])
def crash(event):
    if event["event"] == "step" and event["step"] == at:
        os._exit(3)
result = finetune(recipe, resume=resume, on_progress=crash, device="cpu")
if os.environ["RANK"] == "0":
    print(json.dumps(result.to_dict()))
"""


def _torchrun(
    folder: Path, recipe: dict[str, Any], resume: bool = False, at: int = 0
) -> subprocess.CompletedProcess[str]:
    (folder / "program.py").write_text(PROGRAM)
    (folder / "recipe.json").write_text(json.dumps(recipe))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launch = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-addr", "127.0.0.1"]
    arguments = ["--master-port", str(port), str(folder / "program.py"), str(folder / "recipe.json")]
    return subprocess.run(
        [sys.executable, *launch, *arguments, "resume" if resume else "start", str(at)],
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )


def _rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "surgery" / "log.jsonl").read_text().splitlines()]


def _recipe(make_recipe: MakeRecipe, converted: Converted, output: Path, accumulation: int) -> dict[str, Any]:
    return make_recipe(
        converted(form="paper", scale=1.5, spread=0.4),
        output=str(output),
        train={"what": "scale+lora", "rank": 2},
        optimizer={"lr": 1e-2},
        batch={"sequences": 1, "accumulation": accumulation},
        checkpoints={"every": 2},
        evaluation={"every": 2},
        control="untouched",
        stages=[
            {"train": {"what": "scale"}, "objective": {"name": "match"}, "budget": {"steps": 3}},
            {"objective": {"name": "distill", "share": 0.5}, "budget": {"steps": 3}},
        ],
    )


def test_two_processes_equal_one(make_recipe: MakeRecipe, converted: Converted, tmp_path: Path) -> None:
    """Matching, distillation and a control; killed in the second stage and resumed."""
    one = finetune(_recipe(make_recipe, converted, tmp_path / "one", 4))
    recipe = _recipe(make_recipe, converted, tmp_path / "two", 2)
    killed = _torchrun(tmp_path, recipe, at=5)
    assert killed.returncode != 0 and not (tmp_path / "two").exists()
    done = _torchrun(tmp_path, recipe, resume=True)
    assert done.returncode == 0, done.stderr[-3000:]
    two = json.loads(done.stdout)
    assert two["resumed_from"] == 3 and two["tokens"] == one.tokens
    first, second = _rows(tmp_path / "one"), _rows(tmp_path / "two")
    assert [(row["step"], row["tokens"]) for row in first] == [(row["step"], row["tokens"]) for row in second]
    for ours, theirs in zip(first, second, strict=True):
        for key in ("loss", "held_out_loss", "grad_norm"):
            if key in ours:
                assert theirs[key] == pytest.approx(ours[key], rel=1e-4), (key, ours["step"])
    for name in ("surgery-ssmax.safetensors", "trained-model.safetensors"):
        ours, theirs = (load_file(tmp_path / which / name) for which in ("one", "two"))
        assert all(torch.allclose(ours[key], theirs[key], atol=2e-4) for key in ours)
    assert one.comparison is not None
    names = [model["name"] for model in two["comparison"]["models"]]
    assert names == [model.name for model in one.comparison.models] and "untouched" in names
    # What one process alone wrote: each row once, nothing left behind.
    assert len({(row["step"], "loss" in row) for row in second}) == len(second)
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["one", "two"]


def test_an_error_of_one_stops_both(make_recipe: MakeRecipe, converted: Converted, tmp_path: Path) -> None:
    done = _torchrun(tmp_path, _recipe(make_recipe, converted, tmp_path / "two", 1), resume=True)
    assert done.returncode != 0
    assert "no interrupted run to resume" in done.stderr and "The first process stopped" in done.stderr


def test_sharding_is_refused(make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(UsageError, match="FSDP does not run on a CPU: accelerate"):
        finetune(make_recipe(), device="cpu")
    assert not (tmp_path / "out.training").exists()

    with pytest.raises(UsageError, match="FSDP is not supported"):
        check_sharding(on_cpu=False)
    monkeypatch.delenv("ACCELERATE_USE_FSDP")
    check_sharding(on_cpu=True)


def test_accelerate_does_not_shard_on_a_cpu() -> None:
    """Why FSDP is refused there. If this fails, a newer accelerate shards on CPUs and the refusal can go."""
    import inspect

    from accelerate.state import AcceleratorState

    source = inspect.getsource(AcceleratorState.__init__)
    kinds = source[: source.index("ACCELERATE_USE_FSDP")].rpartition("elif self.distributed_type in [")[2]
    assert "MULTI_GPU" in kinds and "MULTI_CPU" not in kinds
