"""Adapters of every kind of PEFT's LoRA: merged as PEFT merges them, or refused with the reason before any work."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from surgery.conversion import convert
from surgery.errors import CheckpointError, PlanRefusedError, VerificationError
from surgery.loading import RunOptions, load_model
from surgery.recovery import adapter_merge, merge
from tests.families import VOCABULARY

OPTIONS = RunOptions(device="cpu", dtype="float32")
ATTENTION = ["q_proj", "v_proj"]
UNTIED = {"tie_word_embeddings": False}
TIED = {"tie_word_embeddings": True}

# What PEFT is told, and the family with its changes that it is told for.
MERGED: dict[str, tuple[dict[str, Any], str, dict[str, Any]]] = {
    "plain": ({"target_modules": ATTENTION}, "llama", UNTIED),
    "tied": ({"target_modules": ATTENTION}, "llama", TIED),
    "all linear layers": ({"target_modules": "all-linear"}, "llama", UNTIED),
    "by pattern": ({"target_modules": r".*layers\.[02]\.(self_attn\.q|mlp\.up)_proj"}, "llama", UNTIED),
    "DoRA": ({"target_modules": ATTENTION, "use_dora": True}, "llama", UNTIED),
    "rsLoRA": ({"target_modules": ATTENTION, "use_rslora": True}, "llama", UNTIED),
    "patterns of rank and alpha": (
        {"target_modules": ATTENTION, "rank_pattern": {"q_proj": 4}, "alpha_pattern": {"v_proj": 1}},
        "llama",
        UNTIED,
    ),
    "some layers": ({"target_modules": ATTENTION, "layers_to_transform": [1]}, "llama", UNTIED),
    "without some modules": (
        {"target_modules": ATTENTION, "exclude_modules": r".*layers\.1\..*"},
        "llama",
        UNTIED,
    ),
    "the operation beside": ({"target_modules": ATTENTION, "modules_to_save": ["ssmax"]}, "llama", UNTIED),
    "the head beside": ({"target_modules": ATTENTION, "modules_to_save": ["lm_head"]}, "llama", UNTIED),
    "the embedding beside": ({"target_modules": ATTENTION, "modules_to_save": ["embed_tokens"]}, "llama", UNTIED),
    "a norm beside": ({"target_modules": ATTENTION, "modules_to_save": ["input_layernorm"]}, "llama", UNTIED),
    "the embedding": ({"target_modules": [*ATTENTION, "embed_tokens"]}, "llama", UNTIED),
    "token rows": ({"target_modules": ATTENTION, "trainable_token_indices": [5, 6, 7]}, "llama", UNTIED),
    "token rows, tied": ({"target_modules": ATTENTION, "trainable_token_indices": [5, 6, 7]}, "llama", TIED),
    "token rows of embedding and head": (
        {"target_modules": ATTENTION, "trainable_token_indices": {"embed_tokens": [5, 6], "lm_head": [9]}},
        "llama",
        UNTIED,
    ),
    "biases of all": ({"target_modules": ATTENTION, "bias": "all"}, "qwen2", UNTIED),
    "biases of the targets": ({"target_modules": ATTENTION, "bias": "lora_only"}, "qwen2", UNTIED),
    "a bias of its own": ({"target_modules": ATTENTION, "lora_bias": True}, "qwen2", UNTIED),
    "experts": (
        {"target_modules": ATTENTION, "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]},
        "qwen3_moe",
        UNTIED,
    ),
    "convolutions": ({"target_modules": ["c_attn"], "fan_in_fan_out": True}, "gpt2", UNTIED),
}
REFUSED: dict[str, tuple[dict[str, Any], str, dict[str, Any], str]] = {
    "the head beside, tied": ({"target_modules": ATTENTION, "modules_to_save": ["lm_head"]}, "llama", TIED, "shares"),
    "the embedding beside, tied": (
        {"target_modules": ATTENTION, "modules_to_save": ["embed_tokens"]},
        "llama",
        TIED,
        "shares",
    ),
    "layers twice": (
        {"target_modules": ATTENTION, "layer_replication": [[0, 2], [1, 3]]},
        "llama",
        UNTIED,
        "layer_replication",
    ),
    "activated": (
        {"target_modules": ATTENTION, "alora_invocation_tokens": [5, 6]},
        "llama",
        UNTIED,
        "alora_invocation_tokens",
    ),
}


def logits(model: Any) -> torch.Tensor:
    """Of every token of the vocabulary."""
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=torch.arange(VOCABULARY).view(2, -1)).logits
    return found


def test_a_bias_that_the_base_has_no_place_for(make_source: Any, tmp_path: Path) -> None:
    folder = trained_adapter(make_source, tmp_path, {"target_modules": ["gate_proj"]}, "llama", UNTIED)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, "lora_bias": True}))
    with pytest.raises((PlanRefusedError, CheckpointError), match="bias"):
        merge(folder, output=tmp_path / "merged", base=tmp_path / "base")
    assert not (tmp_path / "merged").exists()


def trained_adapter(make_source: Any, tmp_path: Path, told: dict[str, Any], family: str, changes: Any) -> Path:
    """The folder of an adapter whose every trained number is random, on a converted base."""
    base = convert(make_source(family, **changes), output=tmp_path / "base").output
    model = load_model(base, OPTIONS)
    adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=2, **told))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    adapted.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


@pytest.mark.parametrize("kind", MERGED)
def test_an_adapter_is_merged_as_peft_merges_it(make_source: Any, tmp_path: Path, kind: str) -> None:
    from peft import PeftModel

    folder = trained_adapter(make_source, tmp_path, *MERGED[kind])
    base = load_model(tmp_path / "base", OPTIONS)
    before = logits(base)
    expected = logits(PeftModel.from_pretrained(base, str(folder)).merge_and_unload().eval())
    assert (expected - before).abs().max() > 1e-2
    result = merge(folder, output=tmp_path / "merged", base=tmp_path / "base")
    assert result.changed_tensors > 0
    found = logits(load_model(tmp_path / "merged", OPTIONS))
    assert (found - expected).abs().max() < 1e-4


@pytest.mark.parametrize("kind", REFUSED)
def test_an_adapter_that_cannot_be_merged_is_refused_before_any_work(
    make_source: Any, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    *told, said = REFUSED[kind]
    folder = trained_adapter(make_source, tmp_path, *told)
    monkeypatch.setattr("surgery.loading.load_model", None)  # nothing is loaded
    with pytest.raises(PlanRefusedError, match=said):
        merge(folder, output=tmp_path / "merged", base=tmp_path / "base")
    assert not (tmp_path / "merged").exists()


def test_a_weight_that_only_some_tokens_show_is_probed(
    make_source: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The comparison of logits must run over the rows of the embedding that the adapter changed."""
    told = {"target_modules": ATTENTION, "trainable_token_indices": [5003, 5004]}
    folder = trained_adapter(make_source, tmp_path, told, "llama", {**UNTIED, "vocab_size": 6000})
    real = adapter_merge.changed_tensors
    monkeypatch.setattr(
        adapter_merge, "changed_tensors", lambda model, names: real(model, [n for n in names if "embed" not in n])
    )
    with pytest.raises(VerificationError):
        merge(folder, output=tmp_path / "merged", base=tmp_path / "base")
