"""Recipes that pretrain a model of `surgery new`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from surgery.conversion import convert
from surgery.errors import PlanRefusedError
from surgery.models import new
from surgery.recovery import finetune
from surgery.recovery.errors import RecipeError
from surgery.recovery.recipe_file import read_recipe
from surgery.schemas.shipped import shipped_file
from tests.commands.conftest import surgery as surgery_command
from tests.recovery.conftest import crash
from tests.recovery.test_processes import SHARDED
from tests.recovery.test_processes import _launch as launch
from tests.tokenizers import write_texts

surgery = surgery_command  # the fixture
SIZES: dict[str, Any] = {"layers": 2, "heads": 2, "width": 32, "length": 64}
SHORT = ("data.sequence_length=64", "budget.tokens=null", "budget.steps=4", "evaluation.every=2", "data.held_out=0.3")


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("texts")
    write_texts(folder, documents=12)
    return folder


def load(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)


def recipe(name: str, folder: Path) -> Path:
    path = folder / f"{name}.yaml"
    path.write_text(shipped_file("recipes", name).text)
    return path


def sets(model: Path, texts: Path, output: Path) -> list[str]:
    return [f"model={model}", f"data.text={texts}", f"output={output}", *SHORT]


@pytest.mark.parametrize("architecture", ["softmax", "ssmax"])
def test_the_recipe_of_each_architecture_runs(architecture: str, texts: Path, tmp_path: Path) -> None:
    model = new(architecture, tmp_path / "model", vocab_size=300, train_tokenizer=[str(texts)], **SIZES).output
    output = tmp_path / "out"
    result = finetune(recipe(f"{architecture}-pretrain", tmp_path), overrides=sets(model, texts, output), device="cpu")
    assert result.steps == 4 and result.comparison is None
    assert result.held_out_loss_before is not None and result.held_out_loss_after is not None
    assert result.held_out_loss_after < result.held_out_loss_before
    before, after = load(model).state_dict(), load(output).state_dict()
    assert before.keys() == after.keys()
    assert not [name for name in before if torch.equal(before[name], after[name])]
    (entry,) = json.loads((output / "surgery/history.json").read_text())["entries"]
    assert entry["trained"] == "pretraining" and entry["weights_changed"]
    groups = result.plan.parameters
    assert groups.get("scale", 0) == (4 if architecture == "ssmax" else 0)
    assert groups["no_decay"] == 5 * 32


def test_the_operation_comes_after_the_training(texts: Path, tmp_path: Path) -> None:
    """A softmax model is pretrained, converted, and pretrained further: the paper's swap in mid-training."""
    model = new("softmax", tmp_path / "model", vocab_size=300, train_tokenizer=[str(texts)], **SIZES).output
    path = recipe("softmax-pretrain", tmp_path)
    first = finetune(path, overrides=sets(model, texts, tmp_path / "first"), device="cpu").output
    assert first is not None
    swapped = convert(first, "ssmax", form="paper", output=tmp_path / "swapped").output
    second = finetune(path, overrides=sets(swapped, texts, tmp_path / "second"), device="cpu").output
    assert second is not None
    scale = load(second).model.layers[0].self_attn.ssmax.scale
    assert not torch.equal(scale, load(swapped).model.layers[0].self_attn.ssmax.scale)


def test_the_command_says_how_to_go_on(surgery: Any, texts: Path, tmp_path: Path) -> None:
    """A model that was made has no source to be compared with."""
    model = new("softmax", tmp_path / "model", vocab_size=300, train_tokenizer=[str(texts)], **SIZES).output
    words = [word for item in sets(model, texts, tmp_path / "out") for word in ("--set", item)]
    ran = surgery("finetune", recipe("softmax-pretrain", tmp_path), *words, "--device", "cpu")
    assert ran.code == 0, ran.err
    assert "Next: surgery evaluate" in ran.out and "--against" not in ran.out


def test_other_recipes_still_need_an_operation(texts: Path, tmp_path: Path) -> None:
    model = new("softmax", tmp_path / "model", vocab_size=300, train_tokenizer=[str(texts)], **SIZES).output
    path = recipe("softmax-pretrain", tmp_path)
    with pytest.raises(PlanRefusedError, match="not converted"):
        finetune(path, overrides=[*sets(model, texts, tmp_path / "out"), "train.what=full"], dry_run=True)


@pytest.mark.parametrize("override", ["control=true", "objective.name=distill"])
def test_nothing_is_compared_with_a_model_that_learned_nothing(override: str, texts: Path, tmp_path: Path) -> None:
    path = recipe("ssmax-pretrain", tmp_path)
    with pytest.raises(RecipeError, match="pretraining"):
        finetune(path, overrides=[*sets(tmp_path, texts, tmp_path / "out"), override], dry_run=True)


def test_it_resumes_to_the_same_bits(texts: Path, tmp_path: Path) -> None:
    model = new("ssmax", tmp_path / "model", vocab_size=300, train_tokenizer=[str(texts)], **SIZES).output
    path = recipe("ssmax-pretrain", tmp_path)
    given = read_recipe(path, [*sets(model, texts, tmp_path / "out"), "checkpoints.every=1"])
    crash(given, step=3)
    resumed = finetune(given, resume=True)
    assert resumed.steps == 4 and resumed.resumed_from is not None
    whole = finetune(path, overrides=sets(model, texts, tmp_path / "whole"), device="cpu")
    assert whole.output is not None
    first, second = load(tmp_path / "out").state_dict(), load(whole.output).state_dict()
    assert all(torch.equal(value, second[name]) for name, value in first.items())


@pytest.mark.slow  # two processes
@pytest.mark.parametrize("architecture", ["softmax", "ssmax", "multiscreen"])
def test_two_processes_share_the_model(architecture: str, texts: Path, tmp_path: Path) -> None:
    """FSDP2 shards by layers, of a model without an operation too."""
    sizes = {"psi": 4, "length": 64} if architecture == "multiscreen" else SIZES
    model = new(architecture, tmp_path / "model", vocab_size=300, train_tokenizer=[str(texts)], **sizes).output
    given = read_recipe(recipe(f"{architecture}-pretrain", tmp_path), sets(model, texts, tmp_path / "out"))
    done = launch(tmp_path, given.model_dump(mode="json", exclude_unset=True), environment=SHARDED)
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["steps"] == 4 and result["shares"][0] < 0.6
    assert result["held_out_loss_after"] < result["held_out_loss_before"]
    before, after = load(model).state_dict(), load(tmp_path / "out").state_dict()
    assert not [name for name in before if torch.equal(before[name], after[name])]
