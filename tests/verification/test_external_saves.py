"""Converted checkpoints that another program trained and saved: only the block in config.json knows what was done."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from transformers import AutoModelForCausalLM

from surgery.checkpoint import load_json
from surgery.checkpoint.hub_upload import check_pushable
from surgery.commands import console
from surgery.commands.app import app
from surgery.conversion import convert, make_plan, refresh, revert
from surgery.conversion.external_save import EXTERNAL_STEP, UNKNOWN_WEIGHTS
from surgery.conversion.records import read_history, read_plan
from surgery.errors import CheckpointError, PlanRefusedError, UsageError
from surgery.evaluation import evaluate
from surgery.recovery import finetune, merge
from surgery.verification import verify
from tests.recovery.conftest import write_tokenizer
from tests.verification.test_failures import rewrite
from tests.verification.test_verify import by_status

SOURCE, OWN = "the source's config.json", "config.json is the conversion's"


def save(folder: Path, out: Path, move: float) -> Path:
    """As a program without this package: load, change every weight, save."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(move)
    model.save_pretrained(out)
    write_tokenizer(out)
    return out


@pytest.fixture(scope="module")
def converted(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return convert(source, form="paper", output=tmp_path_factory.mktemp("converted") / "out").output


@pytest.fixture(scope="module")
def saved(converted: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Saved by transformers with all weights as they were."""
    return save(converted, tmp_path_factory.mktemp("external") / "saved", 0.0)


@pytest.fixture(scope="module")
def trained(converted: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Saved by transformers after every weight changed."""
    return save(converted, tmp_path_factory.mktemp("external") / "trained", 0.01)


@pytest.fixture
def copy(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "copy"))


def test_the_plan_is_what_config_json_says(trained: Path, converted: Path) -> None:
    assert not (trained / "surgery").exists(), "transformers does not keep the record"
    plan, whole = read_plan(trained), read_plan(converted)
    keys = ("operations", "tensors", "identity", "source", "model_type", "architecture", "attention", "hash")
    assert json.loads(json.dumps({key: plan[key] for key in keys})) == {key: whole[key] for key in keys}


@pytest.mark.fresh
def test_unchanged_weights_verify_as_the_source(saved: Path, source: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(saved, tmp_path / "saved"))
    result = verify(folder, against=source, length=32)
    assert not result.failed
    passed = by_status(result, "passed")
    assert {SOURCE, "source tensors byte for byte", "operation off = source", "n: packed", "ablation"} <= passed
    assert {"stock classes refuse it", "loads without surgery, offline", "code is this version's"} <= passed
    skipped = by_status(result, "skipped")
    assert skipped == {
        "config.json carries the plan", OWN, "other files byte for byte", "starts as the source"
    }  # fmt: skip
    card = (folder / "README.md").read_text()
    assert UNKNOWN_WEIGHTS in card and "Verification" in card
    assert "surgery revert" not in card and "byte for byte" not in card.split("## Verification")[0]


def test_changed_weights_are_not_called_the_source(copy: Path, source: Path) -> None:
    found = {check.name: check for check in verify(copy, against=source, files_only=True).checks}
    assert not [name for name, check in found.items() if check.status == "failed"]
    tensors = found["source tensors byte for byte"]
    assert tensors.status == "skipped" and UNKNOWN_WEIGHTS in tensors.detail


def test_another_source_is_named(copy: Path, source: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(source, tmp_path / "other"))
    rewrite(other / "config.json", lambda config: config.update(rms_norm_eps=1e-3))
    (check,) = verify(copy, against=other, files_only=True).failed
    assert check.name == SOURCE and "rms_norm_eps" in check.detail


def test_inspect_says_who_saved_it(
    trained: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "out", Console(width=160))
    assert console.run(app, ["inspect", str(trained)]) == 0
    assert UNKNOWN_WEIGHTS in capsys.readouterr().out


def test_revert_says_what_it_cannot_do(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(PlanRefusedError, match="another program saved it") as caught:
        revert(trained, output=tmp_path / "back")
    assert "Its source is tiny" in str(caught.value) and not (tmp_path / "back").exists()


def test_a_conversion_names_the_source(trained: Path) -> None:
    with pytest.raises(PlanRefusedError) as caught:
        make_plan(trained, [{"name": "ssmax"}])
    assert "Convert its source" in str(caught.value) and "revert" not in str(caught.value)


def test_a_card_of_another_program_stays(copy: Path) -> None:
    with pytest.raises(CheckpointError, match="no card"):
        check_pushable(copy)
    (copy / "README.md").write_text("# my run\n")
    verify(copy, files_only=True)
    assert (copy / "README.md").read_text() == "# my run\n"
    assert len(load_json(copy / "surgery" / "verify.json")["runs"]) == 1
    check_pushable(copy)


def test_a_plain_model_is_still_not_pushed(source: Path) -> None:
    with pytest.raises(UsageError, match="not written by surgery"):
        check_pushable(source)


def test_refresh_does_not_make_it_a_conversion(copy: Path) -> None:
    with (copy / "surgery_models.py").open("a") as file:
        file.write("# older\n")
    assert [check.name for check in verify(copy, files_only=True).failed] == ["code is this version's"]
    assert refresh(copy).changed
    assert not verify(copy, files_only=True).failed
    assert [entry["trained"] for entry in read_history(copy)] == [UNKNOWN_WEIGHTS]


def test_a_training_starts_from_it_and_remembers(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("query finds key and value " * 200)
    recipe = {
        "model": str(trained),
        "data": {"text": str(tmp_path / "text.txt"), "sequence_length": 16, "held_out": 0},
        "output": str(tmp_path / "out"),
        "budget": {"steps": 1},
    }
    finetune(recipe)
    assert [entry["trained"] for entry in read_history(tmp_path / "out")] == [UNKNOWN_WEIGHTS, "scale"]
    assert not verify(tmp_path / "out", files_only=True).failed
    with pytest.raises(PlanRefusedError, match="another program"):
        revert(tmp_path / "out", output=tmp_path / "back")


def test_an_adapter_is_merged_into_it_and_the_result_is_measured(trained: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    get_peft_model(AutoModelForCausalLM.from_pretrained(trained), config).save_pretrained(str(tmp_path / "adapter"))
    merge(tmp_path / "adapter", base=trained, output=tmp_path / "merged")
    assert [entry["step"] for entry in read_history(tmp_path / "merged")] == [EXTERNAL_STEP, "merge"]
    (tmp_path / "text.txt").write_text("query finds key and value " * 40)
    part = {"kind": "loss", "length": 16, "documents": 1}
    for folder in (trained, tmp_path / "merged"):
        result = evaluate(folder, text=[tmp_path / "text.txt"], suite={"name": "loss", "parts": [part]})
        assert result.section("loss").results[0].overall.loss.value > 0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda block: block.update(operations=[{"name": "softmin"}]), "softmin"),
        (lambda block: block["operations"][0].update(form="bold"), "bold"),
        (lambda block: block.pop("base"), "surgery"),
        (lambda block: block.update(format_version=9), "format version 9"),
    ],
)
def test_a_block_that_is_broken(copy: Path, change: Any, said: str) -> None:
    rewrite(copy / "config.json", lambda config: change(config["surgery"]))
    with pytest.raises(CheckpointError, match=said):
        read_plan(copy)
