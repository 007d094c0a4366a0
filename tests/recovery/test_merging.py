"""Adapters kept, and merged later: the same model, or nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import surgery.commands.merge  # noqa: F401
from surgery.errors import CheckpointError, PlanRefusedError, UsageError, VerificationError
from surgery.loading import RunOptions, load_model
from surgery.recovery import finetune, merge
from tests.families import tiny_model
from tests.recovery.conftest import Converted, MakeRecipe, convert_by_hand, write_tokenizer
from tests.recovery.test_results import _files, _tensors


def _kept(make_recipe: MakeRecipe, model: Path | None = None, output: str | None = None) -> Path:
    recipe = make_recipe(model, train={"what": "scale+lora", "rank": 2, "merge": False}, optimizer={"lr": 5e-2})
    result = finetune(recipe if output is None else {**recipe, "output": output})
    assert result.output is not None
    return result.output


def _logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.arange(5, 45)[None]).logits


def test_an_adapter_that_is_kept(make_recipe: MakeRecipe, converted: Converted, tmp_path: Path) -> None:
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoTokenizer

    folder = _kept(make_recipe)
    assert not list(folder.glob("model*")) and (folder / "adapter_model.safetensors").is_file()
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == str(converted())
    entry = json.loads((folder / "surgery" / "history.json").read_text())["entries"][0]
    assert entry["merged"] is False and (folder / "surgery" / "training.png").is_file()
    assert AutoTokenizer.from_pretrained(folder)("ab")["input_ids"]
    # The base reference is enough for PEFT to find it, and the result is that of the merged run.
    model = AutoPeftModelForCausalLM.from_pretrained(folder).eval()
    assert any(parameter.abs().min() > 0 for name, parameter in model.named_parameters() if "ssmax" in name)
    merged = finetune(
        make_recipe(train={"what": "scale+lora", "rank": 2}, optimizer={"lr": 5e-2}, output=str(tmp_path / "merged"))
    ).output
    assert merged is not None
    assert torch.allclose(_logits(model), _logits(load_model(merged, RunOptions(device="cpu"))), atol=1e-4)


def test_the_adapter_is_no_output(make_recipe: MakeRecipe) -> None:
    folder = _kept(make_recipe)
    before = sorted(path.name for path in folder.iterdir())
    with pytest.raises(UsageError, match="is the source itself"):
        merge(folder, output=folder, force=True)
    inner = folder / "adapter"
    inner.mkdir()
    for path in folder.glob("adapter_*"):
        path.rename(inner / path.name)
    (folder / "base.json").rename(inner / "base.json")
    with pytest.raises(UsageError, match="source lies inside"):
        merge(inner, output=folder, force=True)
    assert sorted(path.name for path in (*folder.iterdir(), *inner.iterdir()) if path != inner) == before


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_merge(make_recipe: MakeRecipe, converted: Converted, tmp_path: Path, dtype: Any) -> None:
    base = converted(dtype=dtype)
    result = merge(_kept(make_recipe, base), output=tmp_path / "merged")
    assert result.logit_difference <= (1e-5 if dtype is None else 5e-2)
    assert result.operation_tensors == 3 and result.changed_tensors == 15
    before, after = _tensors(base), _tensors(tmp_path / "merged")
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert len(changed) == 15 and all(".self_attn." in name for name in changed)
    assert all(before[name].dtype == after[name].dtype for name in before)
    entry = json.loads((tmp_path / "merged" / "surgery" / "history.json").read_text())["entries"][-1]
    assert entry["step"] == "merge" and entry["weights_changed"] and len(entry["adapter_sha256"]) == 64
    with pytest.raises(UsageError, match="not empty"):
        merge(tmp_path / "out", output=tmp_path / "merged")


def test_merge_of_what_finetune_left_beside_the_merged_weights(
    make_recipe: MakeRecipe, converted: Converted, tmp_path: Path
) -> None:
    finetune(make_recipe(train={"what": "scale+lora", "rank": 2, "rslora": True}, optimizer={"lr": 5e-2}))
    adapter = tmp_path / "out" / "adapter"
    merge(adapter, output=tmp_path / "merged")
    record = json.loads((adapter / "base.json").read_text())
    del record["path"]  # as earlier versions wrote it
    (adapter / "base.json").write_text(json.dumps(record))
    with pytest.raises(UsageError, match="names the base 'model', which was not found"):
        merge(adapter, output=tmp_path / "again")
    merge(adapter, output=tmp_path / "again", base=converted())
    one, other = _tensors(tmp_path / "out"), _tensors(tmp_path / "merged")
    assert all(torch.allclose(one[name], other[name], atol=1e-6) for name in one)
    # Trained on this base, not on one with other numbers.
    with pytest.raises(CheckpointError, match="trained on another base"):
        merge(adapter, output=tmp_path / "never", base=converted(form="paper"))
    assert not (tmp_path / "never").exists()


def test_a_result_that_is_not_the_same_is_not_written(
    make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from surgery.recovery import adapter_merge as merging

    adapter = _kept(make_recipe)
    changed = merging.changed_tensors
    monkeypatch.setattr(
        merging, "changed_tensors", lambda *args: {name: value * 1.01 for name, value in changed(*args).items()}
    )
    with pytest.raises(VerificationError, match="nothing was written") as caught:
        merge(adapter, output=tmp_path / "merged")
    assert caught.value.exit_code == 4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_ties(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    """An adapter on attention leaves a tied model tied; one on the head would untie it."""
    model = tiny_model("llama", vocab_size=260, tie_word_embeddings=True)
    model.save_pretrained(tmp_path / "source")
    write_tokenizer(tmp_path / "source")
    base = convert_by_hand(tmp_path / "source", tmp_path / "base")
    adapter = _kept(make_recipe, base)
    merge(adapter, output=tmp_path / "merged")
    assert "lm_head.weight" not in _tensors(tmp_path / "merged")
    loaded = load_model(tmp_path / "merged", RunOptions(device="cpu"))
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    head = shutil.copytree(adapter, tmp_path / "head")
    config = json.loads((head / "adapter_config.json").read_text())
    (head / "adapter_config.json").write_text(json.dumps({**config, "target_modules": ["q_proj", "lm_head"]}))
    with pytest.raises(PlanRefusedError, match="changes lm_head, whose weights this model shares"):
        merge(head, output=tmp_path / "never")


def test_what_is_no_adapter(make_recipe: MakeRecipe, converted: Converted, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not an adapter"):
        merge(tmp_path, output=tmp_path / "never")
    with pytest.raises(PlanRefusedError, match="anchored is more than a constant") as caught:
        merge(converted(scale=0.1), output=tmp_path / "never")
    assert caught.value.hint is not None and "OUT/adapter" in caught.value.hint
    adapter = _kept(make_recipe)
    config = json.loads((adapter / "adapter_config.json").read_text())
    other = shutil.copytree(adapter, tmp_path / "other")
    (other / "adapter_config.json").write_text(json.dumps({**config, "peft_type": "IA3"}))
    with pytest.raises(PlanRefusedError, match="'IA3'"):
        merge(other, output=tmp_path / "never")
    (other / "adapter_config.json").write_text(json.dumps(config))
    tensors = load_file(other / "adapter_model.safetensors")
    save_file({name: value[:1].contiguous() for name, value in tensors.items()}, other / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match="does not fit the base"):
        merge(other, output=tmp_path / "never")
    (other / "adapter_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"adapter_model\.safetensors is missing"):
        merge(other, output=tmp_path / "never")
    assert not (tmp_path / "never").exists()


def test_merge_command(surgery_command: Any, make_recipe: MakeRecipe, tmp_path: Path) -> None:
    adapter = _kept(make_recipe)
    before = _files(adapter)
    shown = surgery_command("merge", str(adapter), "-o", str(tmp_path / "one"))
    assert shown.code == 0 and "15 tensors changed" in shown.out, shown.err
    document = json.loads(surgery_command("merge", str(adapter), "-o", str(tmp_path / "two"), "--json").out)
    assert document["kind"] == "merge" and document["logit_difference"] <= document["tolerance"]
    assert _tensors(tmp_path / "one").keys() == _tensors(tmp_path / "two").keys()
    assert _files(adapter) == before
    assert surgery_command("merge", str(tmp_path), "-o", str(tmp_path / "three")).code == 2


def test_the_base_is_found_from_the_adapter_wherever_the_program_runs(
    make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """README's command: base and output beside one another, named without their folder, merged from elsewhere."""
    (tmp_path / "here").mkdir()
    shutil.copytree(make_recipe()["model"], tmp_path / "here" / "operated")
    monkeypatch.chdir(tmp_path / "here")
    folder = _kept(make_recipe, Path("operated"), "adapted")
    monkeypatch.chdir(tmp_path)
    moved = (tmp_path / "here").rename(tmp_path / "there")
    assert merge(moved / folder.name, output=tmp_path / "merged").base == "operated"
    shutil.rmtree(moved / "operated")
    with pytest.raises(UsageError, match="'operated'") as refused:
        merge(moved / folder.name, output=tmp_path / "again")
    assert "--base" in str(refused.value.hint)
