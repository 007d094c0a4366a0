"""What a run leaves behind: a full checkpoint in the source's format, and its record."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file

from surgery.recovery import finetune
from tests.recovery.conftest import Converted, MakeRecipe

SHARD = "surgery-ssmax.safetensors"


def _files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _tensors(folder: Path) -> dict[str, torch.Tensor]:
    index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    shards = {shard: load_file(folder / shard) for shard in set(index.values())}
    assert sorted(index) == sorted(name for shard in shards.values() for name in shard)
    return {name: shards[shard][name] for name, shard in index.items()}


def test_scale_changes_the_small_shard_alone(make_recipe: MakeRecipe, converted: Converted, tmp_path: Path) -> None:
    result = finetune(make_recipe())
    before, after = _files(converted()), _files(tmp_path / "out")
    assert {name for name in before if before[name] != after[name]} == {SHARD}
    assert sorted(after.keys() - before.keys()) == [
        "surgery/history.json", "surgery/log.jsonl", "surgery/recipe.yaml", "surgery/training.png",
    ]  # fmt: skip
    trained = load_file(tmp_path / "out" / SHARD)
    assert all(tensor.dtype == torch.float32 and tensor.abs().min() > 0 for tensor in trained.values())
    assert result.held_out_loss_after < result.held_out_loss_before
    assert not (tmp_path / "out.training").exists()


def test_full(make_recipe: MakeRecipe, converted: Converted, tmp_path: Path) -> None:
    finetune(make_recipe(train={"what": "full"}, optimizer={"lr": 1e-3}))
    source, out = _tensors(converted()), _tensors(tmp_path / "out")
    assert source.keys() == out.keys()
    assert all(not torch.equal(source[name], out[name]) for name in source)
    assert (tmp_path / "out" / "trained-model.safetensors").exists()
    assert not (tmp_path / "out" / "source-model.safetensors").exists()


def test_lora(make_recipe: MakeRecipe, converted: Converted, tmp_path: Path) -> None:
    finetune(make_recipe(train={"what": "scale+lora", "rank": 2}, optimizer={"lr": 1e-2}))
    source, out = _tensors(converted()), _tensors(tmp_path / "out")
    changed = {name for name in source if not torch.equal(source[name], out[name])}
    assert changed == {name for name in source if "self_attn" in name}
