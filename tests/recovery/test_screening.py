"""Recipes on a screened checkpoint: thresholds, softness and windows are what ``scale`` trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from surgery.conversion import convert
from surgery.loading import load_model
from surgery.recovery import finetune

NAMES = ("threshold", "softness", "log2_window")


@pytest.fixture(scope="module")
def screened(converted: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = converted().parent / "source"
    start = {"threshold": 0.0, "softness": 0.2, "log2_window": 4.0}
    return convert(source, "screening", start=start, output=tmp_path_factory.mktemp("screened") / "model").output


def parameters(folder: Path) -> dict[str, torch.Tensor]:
    return {name: value.detach() for name, value in load_model(folder).named_parameters() if ".screening." in name}


@pytest.mark.parametrize("objective", ["next_token", "distill"])
def test_scale_trains_every_parameter_and_nothing_else(
    screened: Path, make_recipe: Any, tmp_path: Path, objective: str
) -> None:
    finetune(make_recipe(screened, train={"what": "scale"}, objective={"name": objective}))
    before, after = parameters(screened), parameters(tmp_path / "out")
    assert len(before) == 9 and sorted(before) == sorted(after)
    for name, value in after.items():
        assert torch.isfinite(value).all() and value.dtype == torch.float32
        assert not torch.equal(value, before[name]), name
    sources = [
        load_model(folder).get_parameter("model.layers.0.self_attn.q_proj.weight")
        for folder in (screened, tmp_path / "out")
    ]
    assert torch.equal(*sources)


def test_with_lora_the_saved_adapter_holds_them(screened: Path, make_recipe: Any, tmp_path: Path) -> None:
    finetune(make_recipe(screened, train={"what": "scale+lora", "rank": 2}))
    from safetensors import safe_open

    files = list((tmp_path / "out").rglob("adapter_model.safetensors"))
    assert files
    with safe_open(files[0], "pt") as adapter:
        names = list(adapter.keys())
    for parameter in NAMES:
        assert sum(name.endswith(parameter) for name in names) == 3
