"""A converter that never touches weights needs no care for packed ones: they are converted, verified and recovered."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from surgery.checkpoint import load_json, open_checkpoint
from surgery.conversion import convert, revert
from surgery.errors import PlanRefusedError
from surgery.loading import operation_modules
from surgery.recovery import finetune
from surgery.verification import verify
from tests.conversion.conftest import tree
from tests.quantized.conftest import METHODS, Quantized

pytestmark = pytest.mark.parametrize("method", METHODS)


def tokens() -> torch.Tensor:
    return torch.randint(3, 260, (1, 24), generator=torch.Generator().manual_seed(1))


def test_converts_loads_starts_as_the_source_and_reverts(quantized: Quantized, method: str, tmp_path: Path) -> None:
    source = quantized(method)
    out = convert(source, form="anchored", layers="all", output=tmp_path / "out").output
    before, after = open_checkpoint(source).tensors, open_checkpoint(out).tensors
    assert {name: after[name].dtype for name in before} == {name: info.dtype for name, info in before.items()}
    expected = AutoModelForCausalLM.from_pretrained(source).eval()
    model: Any = AutoModelForCausalLM.from_pretrained(out, trust_remote_code=False).eval()
    with torch.no_grad():
        assert torch.equal(model(input_ids=tokens()).logits, expected(input_ids=tokens()).logits)
    modules: dict[str, Any] = operation_modules(model)
    assert len(modules) == 3 and {module.scale.dtype for module in modules.values()} == {torch.float32}
    # Anew: bitsandbytes, once it was evaluated on some processors, has a layout that gradients do not go through.
    model = AutoModelForCausalLM.from_pretrained(out, trust_remote_code=False).train()
    modules = operation_modules(model)
    model(input_ids=tokens(), labels=tokens()).loss.backward()
    assert all((module.scale.grad != 0).all() for module in modules.values())
    revert(out, output=tmp_path / "back")
    assert tree(tmp_path / "back") == tree(source)


@pytest.mark.fresh
def test_verifies(quantized: Quantized, method: str, tmp_path: Path) -> None:
    out = convert(quantized(method), form="anchored", layers="all", output=tmp_path / "out").output
    found = verify(out, against=quantized(method), length=64)
    assert found.failed == ()


def test_lora_over_packed_weights_gives_an_adapter(
    quantized: Quantized, method: str, make_recipe: Any, tmp_path: Path
) -> None:
    """As QLoRA does: the weights stay as they are, the adapter and the new parameters learn."""
    source = convert(quantized(method), form="anchored", layers="all", output=tmp_path / "model").output
    recipe = make_recipe(source, train={"what": "scale+lora", "merge": False, "rank": 2})
    result = finetune(recipe)
    assert result.plan.parameters == {"scale": 3 * 4, "weights": 3 * 4 * 2 * (128 + 128)}
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()
    assert result.held_out_loss_after != result.held_out_loss_before


def test_scales_alone_are_learned_beside_the_packed_weights(
    quantized: Quantized, method: str, make_recipe: Any, tmp_path: Path
) -> None:
    """The result has the source's packed tensors, byte for byte, and other scales."""
    source = convert(quantized(method), form="anchored", layers="all", output=tmp_path / "model").output
    result = finetune(make_recipe(source, budget={"steps": 8}))
    assert result.held_out_loss_after < result.held_out_loss_before
    before, after = tree(source), tree(tmp_path / "out")
    shards = {name for name in before if name.startswith("source-") and name.endswith(".safetensors")}
    assert shards and all(after[name] == before[name] for name in shards)
    assert after["surgery-operations.safetensors"] != before["surgery-operations.safetensors"]
    assert load_json(tmp_path / "out" / "config.json")["quantization_config"]
    model: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "out", trust_remote_code=False)
    modules: dict[str, Any] = operation_modules(model)
    assert len(modules) == 3 and all((module.scale != 0).all() for module in modules.values())


def test_what_transformers_cannot_train_through_is_refused(
    quantized: Quantized, method: str, make_recipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if method == "fp8":
        pytest.skip("unpacked in memory on a CPU")
    from transformers.quantizers.base import HfQuantizer

    source = convert(quantized(method), form="anchored", layers="all", output=tmp_path / "model").output
    for kind in HfQuantizer.__subclasses__():
        monkeypatch.setattr(kind, "is_trainable", False)
    with pytest.raises(PlanRefusedError, match=r"cannot train through quantized weights of this kind \("):
        finetune(make_recipe(source))


@pytest.mark.parametrize("train", [{"what": "full"}, {"what": "scale+lora"}])
def test_changing_the_packed_weights_is_refused(
    quantized: Quantized, method: str, train: dict[str, Any], make_recipe: Any, tmp_path: Path
) -> None:
    source = convert(quantized(method), form="anchored", layers="all", output=tmp_path / "model").output
    with pytest.raises(PlanRefusedError, match=r"quantized weights \("):
        finetune(make_recipe(source, train=train), dry_run=True)
