"""Controls as checkpoints beside the output: what is written, that it is the control, and what is refused."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from surgery.checkpoint import load_json
from surgery.conversion import convert, revert
from surgery.data import collate
from surgery.errors import CheckpointError, UsageError
from surgery.evaluation import training_history
from surgery.evaluation.control import condition_of
from surgery.loading import RunOptions, load_model
from surgery.operations import OPERATIONS
from surgery.recovery import finetune, merge
from surgery.recovery.recovery_run import RecoveryRun
from surgery.training.logits import token_logits
from surgery.verification import verify
from tests.conversion.conftest import tree
from tests.recovery.conftest import Converted, CrashError, MakeRecipe, crash
from tests.recovery.test_training import _rows

OPERATIONS_GIVEN = [
    {"name": "rope", "factor": 2},
    {"name": "ssmax", "form": "bias", "layers": "0-1", "outputs": "gain"},
]
LORA = {"what": "scale+lora", "rank": 2}
BOTH = ["untouched", "temperature"]


@pytest.fixture(scope="module")
def source(converted: Converted) -> Path:
    return converted(spread=0.4).parent / "source"


@pytest.fixture(scope="module")
def ready(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return convert(source, OPERATIONS_GIVEN, output=tmp_path_factory.mktemp("ready") / "ready").output


@pytest.fixture
def logits(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, torch.Tensor]]:
    """The logits of each trained model, by its name, before its weights are taken out of it."""
    found: dict[str, torch.Tensor] = {}
    take = RecoveryRun._take_weights

    def noting(self: Any, trained: Any, variant: Any) -> Any:
        found[variant] = _logits(trained.model)
        return take(self, trained, variant)

    monkeypatch.setattr(RecoveryRun, "_take_weights", noting)
    yield found


def _logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return token_logits(model.eval().cpu().float(), collate(_rows()))


def _equal_logits(folder: Path, expected: torch.Tensor) -> None:
    assert torch.allclose(_logits(load_model(folder, RunOptions(device="cpu"))), expected, atol=1e-3)


@pytest.mark.parametrize("train", [LORA, {"what": "full"}], ids=["adapter", "full"])
@pytest.mark.parametrize("in_recipe", [True, False], ids=["operations", "converted"])
def test_a_written_control_is_the_trained_one(
    make_recipe: MakeRecipe,
    source: Path,
    ready: Path,
    tmp_path: Path,
    logits: Mapping[str, torch.Tensor],
    in_recipe: bool,
    train: dict[str, Any],
) -> None:
    chosen: dict[str, Any] = {"model": str(source), "operations": OPERATIONS_GIVEN} if in_recipe else {}
    recipe = make_recipe(ready, train=train, optimizer={"lr": 1e-2}, control=BOTH)
    result = finetune({**recipe, **chosen}, device="cpu")
    untouched, temperature = tmp_path / "out-untouched", tmp_path / "out-temperature"
    assert result.controls == {"untouched": untouched, "temperature": temperature}
    assert result.to_dict()["controls"] == {"untouched": str(untouched), "temperature": str(temperature)}
    entry = load_json(tmp_path / "out" / "surgery" / "history.json")["entries"][-1]
    assert entry["control_checkpoints"] == {"untouched": "out-untouched", "temperature": "out-temperature"}
    for name, folder in result.controls.items():
        _equal_logits(folder, logits[name])
        assert not torch.allclose(logits[name], logits["operated"], atol=1e-2)
    # The source's own class and RoPE; the other operations of the run beside the constants.
    assert load_json(untouched / "config.json") == load_json(source / "config.json")
    assert not list(untouched.glob("*.py"))
    block = load_json(temperature / "config.json")["surgery"]
    before, after = load_json(ready / "config.json")["surgery"]["operations"], block["operations"]
    assert after[0] == before[0]
    assert after[1] == {
        "name": "ssmax",
        "form": "constant",
        "outputs": "gain",
        "layers": [0, 1],
        "heads": None,
        "reference_length": None,
        "start": {"bias": 1.0, "gain": 1.0},
    }
    assert block["base"]["name"] == "source"
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == [
        "out",
        "out-temperature",
        "out-untouched",
    ]


def test_constants_alone(make_recipe: MakeRecipe, source: Path, ready: Path, tmp_path: Path) -> None:
    """Verified, loaded by transformers alone, merged and reverted like any converted checkpoint."""
    result = finetune(make_recipe(ready, control=BOTH), device="cpu")
    temperature = tmp_path / "out-temperature"
    assert result.controls == {"temperature": temperature} and not (tmp_path / "out-untouched").exists()
    assert verify(temperature, against=source, length=32).failed == ()
    program = (
        "import sys, torch\nfrom transformers import AutoModelForCausalLM\n"
        "model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True, dtype='float32')\n"
        "torch.save(model.eval()(torch.arange(3, 40)[None]).logits.detach(), sys.argv[2])\n"
        "assert 'surgery' not in sys.modules\n"
    )
    at = tmp_path / "logits.pt"
    subprocess.run([sys.executable, "-c", program, str(temperature), str(at)], check=True, cwd=tmp_path)
    with torch.no_grad():
        own = load_model(temperature, RunOptions(device="cpu"))(torch.arange(3, 40)[None]).logits
    assert torch.allclose(torch.load(at), own, atol=1e-5)
    revert(temperature, output=tmp_path / "back")
    assert tree(tmp_path / "back") == tree(source)
    merge(temperature, output=tmp_path / "merged", device="cpu")
    assert load_json(tmp_path / "merged" / "config.json")["architectures"] == ["LlamaForCausalLM"]
    # An evaluation of the control does not take its gain for the operation's, nor ask for a control.
    runs = training_history(temperature)
    assert condition_of(runs) == (
        False,
        "It is the control temperature of a training: its gain is not the operation's.",
    )


def test_the_control_of_an_adapter_alone(make_recipe: MakeRecipe, source: Path, tmp_path: Path, logits: Any) -> None:
    """`untouched` is an adapter for the source; constants have no base on the disk, so they are merged."""
    ready = convert(source, "ssmax", output=tmp_path / "ready").output
    (tmp_path / "source").symlink_to(source)  # a converted model has the name of its source alone
    recipe = make_recipe(ready, train={**LORA, "merge": False}, optimizer={"lr": 1e-2}, control=BOTH)
    finetune(recipe, device="cpu")
    assert not (tmp_path / "out-untouched" / "config.json").exists()
    merge(tmp_path / "out-untouched", output=tmp_path / "merged", device="cpu")
    _equal_logits(tmp_path / "merged", logits["untouched"])
    _equal_logits(tmp_path / "out-temperature", logits["temperature"])


def test_what_cannot_be_written_is_said_and_still_compared(
    make_recipe: MakeRecipe, ready: Path, tmp_path: Path, surgery_command: Any
) -> None:
    first = finetune(make_recipe(ready, train={"what": "full"}, output=str(tmp_path / "first")), device="cpu").output
    recipe = make_recipe(first, control=BOTH)
    (tmp_path / "r.json").write_text(json.dumps(recipe))
    reason = "first: its weights were trained (full), so the source is no longer in it"
    said = (
        "the control untouched gets no checkpoint: the recipe trains only the operation, so this control is the source "
        "model",
        f"the control temperature gets no checkpoint: {reason}",
    )
    planned = surgery_command("finetune", str(tmp_path / "r.json"), "--dry-run")
    assert all(f"note: {note}\n" in planned.err for note in said)
    assert "their checkpoints │ none" in " ".join(planned.out.split())
    result = finetune(recipe, device="cpu")
    assert result.plan.notes == said and said[1] in result.notes and said[1] in result.to_table().notes
    assert result.plan.to_dict()["controls"][1] == {"name": "temperature", "output": None, "reason": reason}
    assert result.controls == {} and not list(tmp_path.glob("out-*"))
    assert result.comparison is not None and result.comparison.difference("recovered", "temperature") is not None
    # The control was trained: an evaluation still takes it for one.
    assert [control["name"] for control in training_history(tmp_path / "out")[-1]["controls"]] == ["temperature"]


def test_the_plan_names_the_folders_and_a_run_spares_what_is_there(
    make_recipe: MakeRecipe,
    source: Path,
    ready: Path,
    tmp_path: Path,
    surgery_command: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recipe = make_recipe(ready, control="temperature", budget={"steps": 1})
    (tmp_path / "r.json").write_text(json.dumps(recipe))
    planned = surgery_command("finetune", str(tmp_path / "r.json"), "--dry-run")
    folder = tmp_path / "out-temperature"
    assert "their checkpoints" in planned.out and "out-temperature" in planned.out
    document = json.loads(surgery_command("finetune", str(tmp_path / "r.json"), "--dry-run", "--json").out)
    assert document["plan"]["controls"] == [{"name": "temperature", "output": str(folder), "reason": None}]
    convert(source, "ssmax", output=folder)
    before = tree(folder)
    with monkeypatch.context() as patched:
        patched.setattr("surgery.recovery.api.read_rows", None)  # refused before any text is read
        with pytest.raises(UsageError, match="out-temperature' is not empty: it holds an earlier output"):
            finetune(recipe, device="cpu")
    assert tree(folder) == before
    done = surgery_command("finetune", str(tmp_path / "r.json"), "--force")
    assert load_json(folder / "config.json")["surgery"]["operations"][-1]["form"] == "constant"
    assert "control temperature" in done.out
    assert f"surgery evaluate {tmp_path / 'out'} {folder}" in " ".join(done.out.split()), done.out[-500:]
    folder.rename(tmp_path / "x-untouched")
    with pytest.raises(UsageError, match="x-untouched' is the source itself"):
        moved = {"model": str(tmp_path / "x-untouched"), "output": str(tmp_path / "x")}
        finetune({**recipe, **moved, "train": LORA, "control": "untouched"}, device="cpu", force=True)


def test_the_disk_needs_room_for_the_controls(
    make_recipe: MakeRecipe, ready: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = sum(path.stat().st_size for path in ready.rglob("*") if path.is_file())
    monkeypatch.setattr("surgery.checkpoint.disk.free_bytes", lambda path: 2 * needed)
    with pytest.raises(CheckpointError, match=f"{3 * needed:,} bytes .* are needed"):
        finetune(make_recipe(ready, train=LORA, control=BOTH), device="cpu")
    assert not list(tmp_path.iterdir())


def test_the_same_bytes_after_a_crash_in_the_control_and_while_writing(
    make_recipe: MakeRecipe, ready: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = make_recipe(ready, train=LORA, control="temperature", checkpoints={"every": 2})
    finetune({**recipe, "output": str(tmp_path / "whole")}, device="cpu")

    def crash_in_control(event: dict[str, Any]) -> None:
        if event["event"] == "step" and event.get("control") and event["step"] == 3:
            raise CrashError

    with pytest.raises(CrashError):
        finetune(recipe, on_progress=crash_in_control, device="cpu")

    def crash_after_the_control(*_: Any, **__: Any) -> None:
        assert (tmp_path / "out-temperature" / "config.json").is_file()
        raise CrashError

    with monkeypatch.context() as patched, pytest.raises(CrashError):
        patched.setattr(RecoveryRun, "_write", crash_after_the_control)
        finetune(recipe, resume=True, device="cpu")
    finetune(recipe, resume=True, device="cpu")
    assert not (tmp_path / "out.training").exists()
    for name in ("trained-model.safetensors", "surgery-operations.safetensors", "config.json"):
        other = (tmp_path / "whole-temperature" / name).read_bytes()
        assert (tmp_path / "out-temperature" / name).read_bytes() == other, name


def test_a_stranger_in_the_place_of_a_control_survives_a_resume(
    make_recipe: MakeRecipe, source: Path, ready: Path, tmp_path: Path
) -> None:
    recipe = make_recipe(ready, control="temperature", checkpoints={"every": 2})
    crash(recipe, step=3)
    convert(source, "ssmax", output=tmp_path / "out-temperature")
    with pytest.raises(UsageError, match="out-temperature' is not empty"):
        finetune(recipe, resume=True, device="cpu")


def test_a_control_that_diverged_writes_nothing(
    make_recipe: MakeRecipe, ready: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from surgery.recovery import DivergedError
    from surgery.recovery.model_run import ModelRun

    run = ModelRun.run

    def poisoned(self: Any, start: Any) -> Any:
        if self.variant == "temperature":
            raise DivergedError("Step 2: the loss became nan")
        return run(self, start)

    monkeypatch.setattr(ModelRun, "run", poisoned)
    result = finetune(make_recipe(ready, control="temperature", budget={"steps": 1}), device="cpu")
    assert result.controls == {} and result.notes == ("temperature: Step 2: the loss became nan",)
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["out"]
    (tmp_path / "out-temperature").mkdir()
    again = finetune(make_recipe(ready, control="temperature", budget={"steps": 1}), device="cpu", force=True)
    (note,) = again.notes
    assert again.controls == {} and note.endswith("became nan; out-temperature is of an earlier run")


def test_each_model_is_freed_before_the_next_one(
    make_recipe: MakeRecipe, ready: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from surgery.recovery.model_run import ModelRun

    alive: list[int] = []
    loaded: list[weakref.ref[Any]] = []
    load = ModelRun._load

    def counting(self: Any) -> Any:
        gc.collect()
        alive.append(sum(one() is not None for one in loaded))
        model = load(self)
        loaded.append(weakref.ref(model))
        return model

    monkeypatch.setattr(ModelRun, "_load", counting)
    finetune(make_recipe(ready, train=LORA, control=BOTH, budget={"steps": 1}), device="cpu")
    assert alive == [0, 0, 0]


def test_the_options_of_a_temperature() -> None:
    """The same layers, heads and outputs; no N, and nothing of a calibration."""
    given = {"name": "ssmax", "form": "anchored", "layers": [1, 2], "heads": [0, 3], "reference_length": 64}
    own = OPERATIONS["ssmax"].control_options(
        "temperature", {**given, "start": {"scale": 0.0}, "calibration": "x" * 64}
    )
    assert own == {
        "name": "ssmax",
        "form": "constant",
        "layers": [1, 2],
        "heads": [0, 3],
        "reference_length": None,
        "start": {"bias": 1.0},
    }
    assert OPERATIONS["ssmax"].control_options("temperature", {**given, "form": "constant"}) is None
    assert OPERATIONS["screening"].control_options("temperature", {"name": "screening", "layers": [1]}) is None


def test_a_stranger_that_comes_during_the_training_survives_a_resume(
    make_recipe: MakeRecipe, source: Path, ready: Path, tmp_path: Path
) -> None:
    """The run never wrote there, so the folder is not its own."""
    recipe = make_recipe(ready, control="temperature", checkpoints={"every": 2})
    place = tmp_path / "out-temperature"

    def meanwhile(event: Mapping[str, Any]) -> None:
        if event["event"] == "writing" and not place.exists():
            convert(source, "ssmax", output=place)

    with pytest.raises(UsageError, match="out-temperature' is not empty"):
        finetune(recipe, device="cpu", on_progress=meanwhile)
    before = tree(place)
    with pytest.raises(UsageError, match="out-temperature' is not empty"):
        finetune(recipe, resume=True, device="cpu")
    assert tree(place) == before
