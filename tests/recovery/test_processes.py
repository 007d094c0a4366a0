"""Two processes do what one does with the same global batch, each with the whole model or with a share of it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from surgery.conversion import convert
from surgery.errors import UsageError
from surgery.recovery import finetune
from surgery.training.sharding import own_sharding
from tests.recovery.conftest import Converted, MakeRecipe, crash

OPERATION = "surgery-ssmax.safetensors"
ROOT = Path(__file__).parents[2]
PROGRAM = """
import atexit, json, os, sys
from torch import distributed
from surgery.recovery import finetune
# Called last; one write, since the other process writes there too.
atexit.register(lambda: os.write(2, f"still in the group: {distributed.is_initialized()}\\n".encode()))
recipe, resume, at = sys.argv[1], sys.argv[2] == "resume", int(sys.argv[3])
shares = []
def told(event):
    if event["event"] == "sharding":
        shares.append(event["held"] / event["parameters"])
    if event["event"] == "step" and event["step"] == at:
        os._exit(3)
result = finetune(recipe, resume=resume, on_progress=told, device="cpu")
if os.environ["RANK"] == "0":
    print(json.dumps({**result.to_dict(), "shares": shares}))
"""
TORCHRUN = ("torch.distributed.run", "--nproc-per-node", "2", "--master-addr", "127.0.0.1", "--master-port")
ACCELERATE = ("accelerate.commands.launch", "--use_fsdp", "--fsdp_version", "2", "--num_processes", "2")
SHARDED = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}


def _launch(
    folder: Path,
    recipe: dict[str, Any],
    resume: bool = False,
    at: int = 0,
    launcher: tuple[str, ...] = TORCHRUN,
    environment: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    (folder / "program.py").write_text(PROGRAM)
    (folder / "recipe.json").write_text(json.dumps(recipe))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = [str(port), str(folder / "program.py"), str(folder / "recipe.json"), "resume" if resume else "start"]
    return subprocess.run(
        [sys.executable, "-m", *launcher, *arguments, str(at)],
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **(environment or {})},
    )


def _same(one: Path, other: Path, *, relative: float, absolute: float) -> None:
    """Same steps, losses, tensors and dtypes, to tolerances."""
    first, second = _rows(one), _rows(other)
    assert [(row["step"], row["tokens"]) for row in first] == [(row["step"], row["tokens"]) for row in second]
    for ours, theirs in zip(first, second, strict=True):
        for key in ("loss", "held_out_loss", "grad_norm"):
            if key in ours:
                assert theirs[key] == pytest.approx(ours[key], rel=relative), (key, ours["step"])
    names = sorted(path.name for path in one.glob("*.safetensors"))
    assert names and names == sorted(path.name for path in other.glob("*.safetensors"))
    for name in names:
        mine, yours = load_file(one / name), load_file(other / name)
        assert mine.keys() == yours.keys()
        for key, tensor in mine.items():
            assert yours[key].dtype == tensor.dtype
            assert torch.allclose(tensor.float(), yours[key].float(), atol=absolute), key


def _rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "surgery" / "log.jsonl").read_text().splitlines()]


def _recipe(make_recipe: MakeRecipe, converted: Converted, output: Path, accumulation: int) -> dict[str, Any]:
    model = output.parent / "model"
    if not model.exists():
        convert(converted(spread=0.4).parent / "source", "ssmax", form="paper", start={"scale": 1.5}, output=model)
    return make_recipe(
        model,
        output=str(output),
        train={"what": "scale+lora", "rank": 2},
        # With Adam's own epsilon a gradient that is nothing but rounding moves its weight by the whole of lr.
        optimizer={"lr": 1e-2, "epsilon": 1e-3},
        batch={"sequences": 1, "accumulation": accumulation},
        checkpoints={"every": 2},
        evaluation={"every": 2},
        control="untouched",
        stages=[
            {"train": {"what": "scale"}, "objective": {"name": "match"}, "budget": {"steps": 3}},
            {"objective": {"name": "distill", "share": 0.5}, "budget": {"steps": 3}},
        ],
    )


def _launch_directly(folder: Path, recipe: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    """As `_launch`, with the two processes alone: a launcher imports torch too, only to start them."""
    (folder / "program.py").write_text(PROGRAM)
    (folder / "recipe.json").write_text(json.dumps(recipe))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    arguments = [sys.executable, str(folder / "program.py"), str(folder / "recipe.json"), "start", "0"]
    own = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **group}
    running = [
        subprocess.Popen(
            arguments,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**own, "RANK": rank, "LOCAL_RANK": rank},
        )
        for rank in ("0", "1")
    ]
    said = [process.communicate(timeout=240) for process in running]
    codes = [process.returncode for process in running]
    return subprocess.CompletedProcess(arguments, max(codes, key=abs), said[0][0], "".join(err for _, err in said))


@pytest.mark.early
def test_two_processes_equal_one(make_recipe: MakeRecipe, converted: Converted, tmp_path: Path) -> None:
    """Matching, distillation and a control."""
    done = _launch_directly(tmp_path, _recipe(make_recipe, converted, tmp_path / "two", 2))
    _equals_one(make_recipe, converted, tmp_path, done, resumed_from=None)


@pytest.mark.slow
def test_two_processes_resume(make_recipe: MakeRecipe, converted: Converted, tmp_path: Path) -> None:
    """The same by torchrun, killed in the second stage and resumed."""
    recipe = _recipe(make_recipe, converted, tmp_path / "two", 2)
    killed = _launch(tmp_path, recipe, at=5)
    assert killed.returncode != 0 and not (tmp_path / "two").exists()
    done = _launch(tmp_path, recipe, resume=True)
    _equals_one(make_recipe, converted, tmp_path, done, resumed_from=3)


def _equals_one(
    make_recipe: MakeRecipe,
    converted: Converted,
    tmp_path: Path,
    done: subprocess.CompletedProcess[str],
    resumed_from: int | None,
) -> None:
    """The run of two processes is that of one with twice the accumulation."""
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr.count("still in the group: False") == 2 and "still in the group: True" not in done.stderr
    one = finetune(_recipe(make_recipe, converted, tmp_path / "one", 4))
    two = json.loads(done.stdout)
    assert two["resumed_from"] == resumed_from and two["tokens"] == one.tokens
    _same(tmp_path / "one", tmp_path / "two", relative=2e-4, absolute=2e-5)
    _same(tmp_path / "one-untouched", tmp_path / "two-untouched", relative=2e-4, absolute=2e-5)
    assert one.comparison is not None
    names = [model["name"] for model in two["comparison"]["models"]]
    assert names == [model.name for model in one.comparison.models] and "untouched" in names
    # What one process alone wrote: each row once, nothing left behind.
    rows = _rows(tmp_path / "two")
    assert len({(row["step"], "loss" in row) for row in rows}) == len(rows)
    folders = ["model", "one", "one-untouched", "two", "two-untouched"]
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == folders


@pytest.mark.slow
def test_an_error_of_one_stops_both(make_recipe: MakeRecipe, converted: Converted, tmp_path: Path) -> None:
    done = _launch(tmp_path, _recipe(make_recipe, converted, tmp_path / "two", 1), resume=True)
    assert done.returncode != 0
    assert "no interrupted run to resume" in done.stderr and "the first process stopped" in done.stderr


@pytest.mark.slow
def test_sharded_equals_one(make_recipe: MakeRecipe, converted: Converted, tmp_path: Path) -> None:
    """Attention matched to a second copy with the operation alone, then every weight."""

    def recipe(output: Path, accumulation: int) -> dict[str, Any]:
        return make_recipe(
            converted(form="paper", scale=1.5, spread=0.4),
            output=str(output),
            train={"what": "full"},
            optimizer={"lr": 1e-3},
            batch={"sequences": 1, "accumulation": accumulation},
            stages=[
                {"train": {"what": "scale"}, "objective": {"name": "match"}, "budget": {"steps": 2}},
                {"objective": {"name": "next_token"}, "budget": {"steps": 2}},
            ],
        )

    finetune(recipe(tmp_path / "one", 2))
    done = _launch(tmp_path, recipe(tmp_path / "two", 1), environment=SHARDED)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout)["shares"] == [pytest.approx(0.5, abs=0.01)]
    # Adam takes whole steps, of lr, where a gradient is nothing but rounding.
    _same(tmp_path / "one", tmp_path / "two", relative=1e-5, absolute=1e-4)
    source = load_file(Path(make_recipe(converted(form="paper", scale=1.5, spread=0.4))["model"]) / OPERATION)
    for key, trained in load_file(tmp_path / "two" / OPERATION).items():
        assert trained.dtype == torch.float32 and (trained != source[key]).all(), key


def test_all_processes_note_the_teacher_together(
    make_recipe: MakeRecipe, converted: Converted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A later process finds the row written, and must not continue while the first one waits for it."""
    recipe = make_recipe(converted(form="paper"), train={"what": "full"}, objective={"name": "distill"})
    crash(recipe, step=1)
    asked: list[str] = []

    def counting(action: Any) -> Any:
        asked.append(action.__qualname__)
        return action()

    monkeypatch.setattr("surgery.recovery.model_run.on_first", counting)
    finetune(recipe, resume=True)
    assert asked == ["ModelRun._teacher.<locals>.note"]
    assert sum("teacher" in row for row in _rows(tmp_path / "out")) == 1


@pytest.mark.slow
def test_sharded_resume_is_exact(make_recipe: MakeRecipe, converted: Converted, tmp_path: Path) -> None:
    """An adapter, in two stages, with a control; killed in the second stage, beside a run that was not."""
    finetune(_recipe(make_recipe, converted, tmp_path / "one", 4))
    undisturbed = _launch(tmp_path, _recipe(make_recipe, converted, tmp_path / "two", 2), environment=SHARDED)
    assert undisturbed.returncode == 0, undisturbed.stderr[-3000:]
    assert len(json.loads(undisturbed.stdout)["shares"]) == 2  # the control too
    _same(tmp_path / "one", tmp_path / "two", relative=1e-4, absolute=2e-4)
    recipe = _recipe(make_recipe, converted, tmp_path / "three", 2)
    assert _launch(tmp_path, recipe, at=5, environment=SHARDED).returncode != 0
    done = _launch(tmp_path, recipe, resume=True, environment=SHARDED)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout)["resumed_from"] == 3
    _same(tmp_path / "two", tmp_path / "three", relative=0, absolute=0)
    for name in ("surgery-operations.safetensors", "trained-model.safetensors", "adapter/adapter_model.safetensors"):
        assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "three" / name).read_bytes(), name
    written = [tmp_path / f"{name}-untouched" / "trained-model.safetensors" for name in ("two", "three")]
    assert written[0].read_bytes() == written[1].read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("environment", [{}, SHARDED], ids=["whole", "sharded"])
def test_rejected_keys_are_counted_over_all_processes(
    make_recipe: MakeRecipe, converted: Converted, tmp_path: Path, environment: dict[str, str]
) -> None:
    """The price is that of each sequence, so that it does not hang on how many run side by side."""
    start = {"threshold": 0.0, "softness": 0.2, "log2_window": 4.0}
    model = convert(converted().parent / "source", "screening", start=start, output=tmp_path / "model").output

    def recipe(output: Path, accumulation: int) -> dict[str, Any]:
        return make_recipe(
            model,
            output=str(output),
            train={"what": "scale+lora", "rank": 2},
            sparsity={"target": 0.8},
            batch={"sequences": 1, "accumulation": accumulation},
            budget={"steps": 3},
        )

    finetune(recipe(tmp_path / "one", 2))
    done = _launch(tmp_path, recipe(tmp_path / "two", 1), environment=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    for ours, theirs in zip(_rows(tmp_path / "one"), _rows(tmp_path / "two"), strict=True):
        for key in ("loss", "rejected", "sparsity", "grad_norm", "held_out_loss", "held_out_rejected"):
            assert (key in ours) == (key in theirs)
            assert key not in ours or theirs[key] == pytest.approx(ours[key], rel=1e-4), key
    assert sum(row.get("sparsity", 0) > 0 for row in _rows(tmp_path / "two")) == 3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("precision", "relative", "absolute"),
    [("float32", 1e-5, 1e-4), ("bfloat16-mixed", 1e-3, 1e-3), ("bfloat16", 1e-2, 2e-3)],
)
def test_sharded_precisions(
    make_recipe: MakeRecipe, converted: Converted, tmp_path: Path, precision: str, relative: float, absolute: float
) -> None:
    """Under accelerate's launcher, every weight of a bfloat16 checkpoint, the operation's being float32."""

    def recipe(output: Path, accumulation: int) -> dict[str, Any]:
        return make_recipe(
            converted(dtype=torch.bfloat16),
            output=str(output),
            train={"what": "full"},
            precision=precision,
            gradient_checkpointing=True,
            optimizer={"lr": 1e-3},
            batch={"sequences": 1, "accumulation": accumulation},
        )

    finetune(recipe(tmp_path / "one", 2))
    launcher = (*ACCELERATE, "--main_process_port")
    done = _launch(tmp_path, recipe(tmp_path / "two", 1), launcher=launcher)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout)["shares"] == [pytest.approx(0.5, abs=0.01)]
    _same(tmp_path / "one", tmp_path / "two", relative=relative, absolute=absolute)


@pytest.mark.parametrize(
    ("environment", "device", "message"),
    [
        ({"FSDP_VERSION": "1"}, "cpu", "FSDP 1 is not supported"),
        ({"FSDP_VERSION": ""}, "cpu", "FSDP 1 is not supported"),
        ({"WORLD_SIZE": "1"}, "cpu", "but this run has one"),
        ({}, "mps", "not on mps"),
        ({"FSDP_OFFLOAD_PARAMS": "true"}, "cuda", "FSDP_OFFLOAD_PARAMS=true is not supported"),
        ({"FSDP_ACTIVATION_CHECKPOINTING": "True"}, "cpu", "FSDP_ACTIVATION_CHECKPOINTING=True"),
        ({"FSDP_RESHARD_AFTER_FORWARD": "false"}, "cpu", "FSDP_RESHARD_AFTER_FORWARD=false"),
    ],
)
def test_sharding_that_is_refused(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], device: str, message: str
) -> None:
    for name, value in {**SHARDED, "WORLD_SIZE": "2", **environment}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=message), own_sharding(device):
        pass


def test_sharding_is_ours_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Within a run nobody else reads from the environment that weights are to be sharded."""
    for name, value in {**SHARDED, "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    with own_sharding("cpu") as sharded:
        assert sharded and os.environ["ACCELERATE_USE_FSDP"] == "false"
    assert os.environ["ACCELERATE_USE_FSDP"] == "true"
    monkeypatch.delenv("ACCELERATE_USE_FSDP")
    with own_sharding("cpu") as sharded:
        assert not sharded


def test_one_process_cannot_shard(make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SHARDED.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match="but this run has one"):
        finetune(make_recipe(), device="cpu")
    assert not (tmp_path / "out.training").exists()
