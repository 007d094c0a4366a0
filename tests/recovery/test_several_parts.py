"""Training a model of several parts, vision and language: its language layers learn, and nothing else moves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from surgery.conversion import convert
from surgery.recovery import finetune
from surgery.verification import verify
from tests.tokenizers import save_tiny_tokenizer, write_texts

FAMILIES = ["gemma3", "llama4", "mistral3", "qwen2_5_vl"]


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


def run(make_source: Any, folder: Path, family: str, what: str) -> tuple[set[str], set[str]]:
    """Names of the tensors that changed, and of all; the result is verified."""
    layers = "chunked" if family == "llama4" else "full"
    converted = convert(make_source(family), "ssmax", layers=layers, output=folder / "converted").output
    save_tiny_tokenizer(converted)
    write_texts(folder / "texts")
    recipe = {
        "model": str(converted),
        "output": str(folder / "trained"),
        "data": {"text": str(folder / "texts"), "held_out": 0.3, "sequence_length": 32},
        "train": {"what": what},
        "budget": {"steps": 2},
    }
    result = finetune(recipe, device="cpu")
    assert result.output is not None and result.held_out_loss_before != result.held_out_loss_after
    assert verify(result.output, record=False).failed == ()
    before, after = tensors(converted), tensors(result.output)
    assert before.keys() == after.keys()
    return {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}, set(before)


@pytest.mark.parametrize(
    "family", [FAMILIES[0], *(pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES[1:])]
)
@pytest.mark.parametrize("what", ["scale", "scale+lora"])
def test_the_language_layers_learn_and_the_rest_stays(make_source: Any, tmp_path: Path, family: str, what: str) -> None:
    changed, every = run(make_source, tmp_path, family, what)
    scales = {name for name in every if name.endswith("ssmax.scale")}
    assert scales and scales <= changed
    projections = {
        name for name in every if "self_attn" in name and "visi" not in name and name.endswith("proj.weight")
    }
    assert changed - scales == (projections if what == "scale+lora" else set())
