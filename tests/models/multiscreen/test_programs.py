"""Multiscreen in PEFT and torch.compile."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from surgery.models.multiscreen.modeling import MultiscreenForCausalLM
from tests.models.multiscreen.conftest import make


def test_lora_is_trained_saved_loaded_and_merged(tokens: Any, tmp_path: Path) -> None:
    make().save_pretrained(tmp_path / "base")

    def base() -> Any:
        return MultiscreenForCausalLM.from_pretrained(tmp_path / "base")

    plain = base()(tokens).logits
    config = LoraConfig(r=2, target_modules=["q_proj", "v_proj", "o_proj"], modules_to_save=[], init_lora_weights=False)
    torch.manual_seed(0)
    tuned = get_peft_model(base(), config)
    trained = [name for name, parameter in tuned.named_parameters() if parameter.requires_grad]
    assert len(trained) == 2 * 3 * 2 and all("lora_" in name for name in trained)
    tuned(tokens, labels=tokens).loss.backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in tuned.parameters() if p.requires_grad)
    expected = tuned.eval()(tokens).logits
    assert (expected - plain).abs().max() > 1e-3
    tuned.save_pretrained(tmp_path / "adapter")
    loaded: Any = PeftModel.from_pretrained(base(), str(tmp_path / "adapter")).eval()
    assert torch.equal(loaded(tokens).logits, expected)
    assert (loaded.merge_and_unload()(tokens).logits - expected).abs().max() < 1e-5


@pytest.mark.parametrize("training", [False, True])
def test_one_graph(training: bool, tokens: Any) -> None:
    """The whole model is one graph, with values and gradients of the uncompiled one."""
    torch.compiler.reset()
    documents = torch.cat((torch.arange(15), torch.arange(25)))[None]
    found = []
    for compiled in (False, True):
        model = make().train(training)
        run = torch.compile(model, backend="aot_eager", fullgraph=True) if compiled else model
        logits = run(tokens, position_ids=documents, use_cache=False).logits
        logits.square().mean().backward()
        found.append((logits.detach(), [parameter.grad for parameter in model.parameters()]))
    (plain, gradients), (logits, compiled_gradients) = found
    assert (logits - plain).abs().max() < 1e-5
    for one, other in zip(gradients, compiled_gradients, strict=True):
        assert one is not None and other is not None and (one - other).abs().max() < 1e-5 * max(1, one.abs().max())


@pytest.mark.slow  # compiles C++
def test_the_compiler_of_torch(tokens: Any) -> None:
    torch.compiler.reset()
    model = make()
    plain = model(tokens, use_cache=False).logits
    with torch.no_grad():
        assert (torch.compile(model)(tokens, use_cache=False).logits - plain).abs().max() < 1e-5
