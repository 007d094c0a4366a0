"""What a run leaves behind: a full checkpoint in the source's format, and its record."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from surgery.conversion import convert
from surgery.data import collate, make_rows
from surgery.errors import PlanRefusedError
from surgery.loading import RunOptions, load_model
from surgery.recovery import finetune, read_recipe
from surgery.schemas.shipped import shipped_files
from surgery.training.logits import token_logits
from surgery.training.losses import next_token_sum
from tests.recovery.conftest import Converted, MakeRecipe

SHARD = "surgery-ssmax.safetensors"
RECORD = ["surgery/history.json", "surgery/log.jsonl", "surgery/recipe.yaml", "surgery/training.png"]


def _files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _tensors(folder: Path) -> dict[str, torch.Tensor]:
    index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    shards = {shard: load_file(folder / shard) for shard in set(index.values())}
    assert sorted(index) == sorted(name for shard in shards.values() for name in shard)
    return {name: shards[shard][name] for name, shard in index.items()}


def _loss(model: Any) -> float:
    rows = make_rows([list(range(5, 60)), list(range(90, 50, -1))], 32, packing=True)
    batch = collate(rows)
    with torch.no_grad():
        return next_token_sum(token_logits(model, batch)[:, :-1], batch["labels"][:, 1:]).item()


@pytest.mark.draws
def test_scale_changes_the_small_shard_alone(make_recipe: MakeRecipe, converted: Converted, tmp_path: Path) -> None:
    result = finetune(make_recipe())
    before, after = _files(converted()), _files(tmp_path / "out")
    assert {name for name in before if before[name] != after[name]} == {SHARD}
    assert sorted(after.keys() - before.keys()) == RECORD
    trained = load_file(tmp_path / "out" / SHARD)
    assert all(tensor.dtype == torch.float32 and tensor.abs().min() > 0 for tensor in trained.values())
    assert result.held_out_loss_after is not None and result.held_out_loss_before is not None
    assert result.held_out_loss_after < result.held_out_loss_before
    assert result.scale is not None and set(result.scale["scale"]) == {"0", "1", "2"}
    assert not (tmp_path / "out.training").exists()
    json.dumps(result.to_dict(), allow_nan=False)

    entry = json.loads(after["surgery/history.json"])["entries"][0]
    assert entry["step"] == "finetune" and entry["trained"] == "scale" and not entry["weights_changed"]
    assert entry["held_out_loss_before"] == result.held_out_loss_before
    assert entry["held_out_loss_after"] == result.held_out_loss_after
    assert entry["tokens"] == result.tokens > 0 and len(entry["recipe_sha256"]) == 64
    assert after["surgery/training.png"].startswith(b"\x89PNG")
    rows = [json.loads(line) for line in after["surgery/log.jsonl"].splitlines()]
    assert [row["step"] for row in rows] == [0, 1, 2, 3, 4, 4]
    assert "held_out_loss" in rows[0] and "held_out_loss" in rows[-1]
    assert read_recipe(tmp_path / "out" / "surgery" / "recipe.yaml") == read_recipe(make_recipe())


@pytest.mark.draws
def test_training_again_appends(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    finetune(make_recipe(budget={"steps": 1}))
    finetune(make_recipe(tmp_path / "out", output=str(tmp_path / "again"), budget={"steps": 1}))
    first, second = _files(tmp_path / "out"), _files(tmp_path / "again")
    assert all(second[name] == first[name] for name in RECORD[1:])
    assert sorted(second.keys() - first.keys()) == [
        "surgery/log-2.jsonl",
        "surgery/recipe-2.yaml",
        "surgery/training-2.png",
    ]
    entries = json.loads(second["surgery/history.json"])["entries"]
    assert [entry["recipe"] for entry in entries] == ["recipe.yaml", "recipe-2.yaml"]
    assert entries[1]["held_out_loss_before"] == pytest.approx(entries[0]["held_out_loss_after"], abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_full(make_recipe: MakeRecipe, converted: Converted, tmp_path: Path, dtype: torch.dtype) -> None:
    model = converted(dtype=dtype)
    finetune(make_recipe(model, train={"what": "full"}, optimizer={"lr": 1e-2}))
    source, out = _tensors(model), _tensors(tmp_path / "out")
    assert source.keys() == out.keys()
    assert all(not torch.equal(source[name], out[name]) for name in source)
    assert all(
        source[name].dtype == out[name].dtype == (torch.float32 if "ssmax" in name else dtype) for name in source
    )
    before, after = _files(model), _files(tmp_path / "out")
    assert before["config.json"] == after["config.json"]
    assert sorted(after.keys() - before.keys()) == [*RECORD, "trained-model.safetensors"]
    assert before.keys() - after.keys() == {"source-model.safetensors"}
    index = json.loads(after["model.safetensors.index.json"])
    assert index["metadata"] == {"kept": "yes", "total_size": 1}
    loaded = load_model(tmp_path / "out", RunOptions(device="cpu"))
    assert all(torch.equal(out[name], tensor) for name, tensor in loaded.state_dict().items() if name in out)


@pytest.mark.parametrize("family", ["qwen3_moe", "phi3"])
def test_full_of_families_whose_tensors_have_other_names(
    make_recipe: MakeRecipe, converted: Converted, tmp_path: Path, family: str
) -> None:
    model = converted(family)
    finetune(make_recipe(model, train={"what": "full"}, optimizer={"lr": 1e-2}, budget={"steps": 2}))
    source, out = _tensors(model), _tensors(tmp_path / "out")
    assert source.keys() == out.keys()
    moved = [name for name in source if not torch.equal(source[name], out[name])]
    # A router may leave an expert without a token, but attention, norms and most experts move.
    assert len(moved) > 0.8 * len(source)
    load_model(tmp_path / "out", RunOptions(device="cpu"))


def test_lora_is_merged_and_kept(make_recipe: MakeRecipe, converted: Converted, tmp_path: Path) -> None:
    from peft import PeftModel

    train = {"what": "scale+lora", "rank": 2, "layers": "1-2", "targets": ["q_proj", "o_proj"]}
    finetune(make_recipe(train=train, optimizer={"lr": 5e-2}))
    source, out = _tensors(converted()), _tensors(tmp_path / "out")
    changed = {name for name in source if not torch.equal(source[name], out[name])}
    assert changed == {
        f"model.layers.{layer}.self_attn.{part}"
        for layer in (1, 2)
        for part in ("q_proj.weight", "o_proj.weight", "ssmax.scale")
    }
    adapter = load_file(tmp_path / "out" / "adapter" / "adapter_model.safetensors")
    for layer in (1, 2):
        name = f"model.layers.{layer}.self_attn.ssmax.scale"
        assert torch.equal(adapter[f"base_model.model.{name}"], out[name])
    assert sum("ssmax" in name for name in adapter) == 2
    config = json.loads((tmp_path / "out" / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "model"
    assert str(tmp_path) not in json.dumps(config)

    merged = load_model(tmp_path / "out", RunOptions(device="cpu"))
    base = load_model(converted(), RunOptions(device="cpu"))
    plain = _loss(base)
    adapted = PeftModel.from_pretrained(base, tmp_path / "out" / "adapter").eval()
    assert _loss(merged) == pytest.approx(_loss(adapted), abs=1e-3)
    assert abs(_loss(merged) - plain) > 1e-2


def test_converted_trained_reverted(make_recipe: MakeRecipe, converted: Converted, texts: Path, tmp_path: Path) -> None:
    """Through the other rooms: convert writes what finetune reads, and they read what finetune writes."""
    import surgery

    source = converted().parent / "source"
    surgery.convert(source, "ssmax", output=tmp_path / "converted")
    recipe = make_recipe(tmp_path / "converted", budget={"steps": 2})
    finetune(recipe)
    surgery.revert(tmp_path / "out", output=tmp_path / "back")
    assert _files(tmp_path / "back") == _files(source)
    train = {"what": "scale+lora", "rank": 2}
    finetune({**recipe, "output": str(tmp_path / "lora"), "train": train})
    with pytest.raises(PlanRefusedError, match=r"scale\+lora"):
        surgery.revert(tmp_path / "lora", output=tmp_path / "never")


def test_what_is_reported_is_what_the_result_does(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    """The held-out loss after training is that of the checkpoint on disk, merging and casting included."""
    train = {"what": "scale+lora", "rank": 2}
    result = finetune(make_recipe(train=train, optimizer={"lr": 1e-2}))
    again = finetune(make_recipe(tmp_path / "out", output=str(tmp_path / "next"), budget={"steps": 1}))
    assert again.held_out_loss_before == pytest.approx(result.held_out_loss_after, abs=1e-4)


def test_loads_offline_without_surgery(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    finetune(make_recipe(train={"what": "scale+lora", "rank": 2}, budget={"steps": 2}))
    program = (
        "import sys\n"
        "class Hide:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] == 'surgery': raise ImportError(name)\n"
        "sys.meta_path.insert(0, Hide())\n"
        "import torch\n"
        "from transformers import AutoModelForCausalLM\n"
        "model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True)\n"
        "scale = model.state_dict()['model.layers.1.self_attn.ssmax.scale']\n"
        "assert scale.dtype == torch.float32 and scale.abs().min() > 0\n"
        "print(model(torch.tensor([[5, 6, 7]])).logits.sum().item())\n"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(tmp_path / "modules")}
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "out")],
        capture_output=True,
        check=False,
        env=environment,
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stderr.decode()
    model = load_model(tmp_path / "out", RunOptions(device="cpu"))
    with torch.no_grad():
        expected = model(torch.tensor([[5, 6, 7]])).logits.sum().item()
    assert float(done.stdout) == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("recipe", shipped_files("recipes"), ids=lambda recipe: recipe.name)
def test_shipped_recipes_run(recipe: Any, converted: Converted, texts: Path, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe.text)
    read = read_recipe(path)
    stages, model = len(read.stages), converted(form="paper")
    if "screening" in recipe.name:
        start = {"threshold": 0.0, "softness": 0.2, "log2_window": 4.0}
        form = "unit" if "unit" in recipe.name else "gated"
        output = tmp_path / "screened"
        model = convert(model.parent / "source", "screening", form=form, start=start, output=output).output
    data = [f"data.text={texts}", "data.sequence_length=32"]
    if read.data.sources:  # a haystack has room for a fact and its question
        data = [f"data.sources.0.path={texts}", "data.sources.0.lengths=[260, 300]", "data.sequence_length=300"]
    if "pretrain" in recipe.name:  # of these few texts, 2% are none
        data.append("data.held_out=0.5")
    result = finetune(
        path,
        overrides=[
            f"model={model.parent / 'source' if read.operations else model}",
            f"output={tmp_path / 'out'}",
            *data,
            *(f"stages.{number}.budget={{steps: 1}}" for number in range(stages)),
            *([] if stages else ["budget={steps: 2}"]),
        ],
    )
    assert result.steps == (stages or 2) and (tmp_path / "out" / "config.json").is_file()
