"""PEFT: an adapter of LoRA matrices that holds the scales as well."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.interop.conftest import Operated, load, logits, scales, tokens

peft = pytest.importorskip("peft")


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
def test_the_adapter_holds_the_scales(operated: Operated, family: str, dtype: Any, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    folder = operated(family, dtype=dtype)
    targets = ["q_proj", "v_proj"] if family == "llama" else ["query_key_value"]
    config = peft.LoraConfig(r=2, target_modules=targets, modules_to_save=["ssmax"], task_type="CAUSAL_LM")
    model = peft.get_peft_model(load(folder), config).train()
    trainable = {name: value for name, value in model.named_parameters() if value.requires_grad}
    own = {name: value for name, value in trainable.items() if "ssmax" in name}
    assert len(own) == 3 and {value.dtype for value in own.values()} == {torch.float32}
    start = {name: value.detach().clone() for name, value in own.items()}

    optimizer = torch.optim.AdamW(trainable.values(), lr=0.01, weight_decay=0.0)
    for _ in range(3):
        model(input_ids=tokens(), labels=tokens()).loss.backward()
        assert all(value.grad is not None and value.grad.abs().sum() > 0 for value in own.values())
        optimizer.step()
        optimizer.zero_grad()
    assert all((value.detach() != start[name]).all() for name, value in own.items())

    model.eval().save_pretrained(tmp_path / "adapter")
    saved = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    in_adapter = {name: value for name, value in saved.items() if "ssmax" in name}
    assert len(in_adapter) == 3 and {value.dtype for value in in_adapter.values()} == {torch.float32}
    again = peft.PeftModel.from_pretrained(load(folder), tmp_path / "adapter").eval()
    assert torch.equal(logits(again), logits(model))

    trained = logits(model)
    merged = model.merge_and_unload()
    learned = [value.detach() for value in own.values()]
    assert all(torch.equal(value, kept) for value, kept in zip(scales(merged).values(), learned, strict=True))
    bound = 1e-4 if dtype is None else 0.1 * trained.abs().max()
    assert (logits(merged) - trained).abs().max() <= bound
    merged.save_pretrained(tmp_path / "merged")
    assert torch.equal(logits(load(tmp_path / "merged")), logits(merged))


def test_operations_are_switched_off_under_an_adapter(operated: Operated, make_source: Any) -> None:
    from surgery.loading import operations_off

    config = peft.LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["ssmax"], task_type="CAUSAL_LM")
    model = peft.get_peft_model(load(operated()), config).eval()
    plain = logits(load(make_source("llama")))
    with operations_off(model):
        assert torch.equal(logits(model), plain)
    assert (logits(model) - plain).abs().max() > 1e-3
