"""The model computes the equations of the paper: values and gradients, against an oracle in float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from surgery.models import plan_new
from surgery.models.multiscreen import blocks
from surgery.models.multiscreen.modeling import MultiscreenForCausalLM
from tests.models.multiscreen.conftest import make
from tests.models.multiscreen.oracle import oracle


@pytest.mark.parametrize("variant", ["v1", "v3"])
@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
def test_values_and_gradients(variant: str, training: bool, tokens: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    small_blocks(monkeypatch)
    compare(make(variant).train(training), tokens, training=training)


@pytest.mark.parametrize("changes", [{"wrapped_positions": True}, {"infinite_windows": False}, {}])
def test_the_readings_of_public_code(
    changes: dict[str, Any], tokens: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint is read otherwise only by an explicit keyword, and keeps what it was read with."""
    small_blocks(monkeypatch)
    make("v1").save_pretrained(tmp_path)
    model = MultiscreenForCausalLM.from_pretrained(tmp_path, **changes)
    compare(model, tokens)
    model.save_pretrained(tmp_path / "again")
    again = MultiscreenForCausalLM.from_pretrained(tmp_path / "again")
    assert torch.equal(again(tokens).logits, model(tokens).logits)
    assert torch.equal(model(tokens).logits, make("v1")(tokens).logits) == (not changes)


def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several blocks, in bands and against all keys."""
    monkeypatch.setattr(blocks, "_BLOCK", 8)
    monkeypatch.setattr(blocks, "_LEAST_BLOCK", 4)


def compare(model: Any, tokens: Any, *, training: bool = False) -> None:
    """Values and all gradients of the model and the oracle."""
    row = tokens[:1, :36]
    logits = model(row, use_cache=False).logits
    state = {name: value.detach().double().requires_grad_() for name, value in model.named_parameters()}
    expected = oracle(state, model.config, row[0], training=training)
    assert (logits[0] - expected).abs().max() < 1e-4
    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(2))
    (logits[0] * weights).sum().backward()
    (expected * weights).sum().backward()
    for name, parameter in model.named_parameters():
        wanted = state[name].grad
        assert wanted is not None and parameter.grad is not None
        assert wanted.abs().max() > 0, name
        assert (parameter.grad - wanted).abs().max() < 1e-4 * max(1, wanted.abs().max()), name


def test_the_variants_are_one_model(tokens: Any) -> None:
    model = make("v1")
    before = model(tokens).logits
    model.change_variant("v3")
    assert model.config.variant == "v3" and torch.equal(model(tokens).logits, before)
    with pytest.raises(ValueError, match="unknown variant"):
        model.change_variant("v2")


def test_a_keyword_cannot_change_the_variant_of_a_checkpoint(tokens: Any, tmp_path: Path) -> None:
    model = make("v1")
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"has the variant 'v1'; load it, and call change_variant"):
        type(model.config).from_pretrained(tmp_path, variant="v3")
    assert type(model.config).from_pretrained(tmp_path, variant="v1").variant == "v1"
    again = type(model).from_pretrained(tmp_path)
    assert torch.equal(again(tokens).logits, model(tokens).logits)


def test_gradients_are_finite_where_everything_is_rejected(tokens: Any) -> None:
    model = make()
    for layer in model.model.layers:
        torch.nn.init.constant_(layer.tiles.acceptance, -200.0)
    # At a distance of 0 a query may equal its key; opposite matrices make sure that nothing is accepted.
    for layer in model.model.layers:
        layer.tiles.k_proj.weight.data.copy_(-layer.tiles.q_proj.weight)
        layer.tiles.log_window.data.fill_(-1.0)
    output = model(tokens, labels=tokens)
    output.loss.backward()
    assert output.logits.isfinite().all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    alone = model.model.embed_tokens.weight / model.model.embed_tokens.weight.norm(dim=-1, keepdim=True)
    assert torch.allclose(output.logits, (alone[tokens] @ alone.T) * model.log_logit_scale.exp(), atol=1e-5)


@pytest.mark.parametrize(("psi", "expected"), [(8, 4_134_146), (16, 27_546_626), (32, 286_347_266)])
def test_the_papers_parameter_counts(psi: int, expected: int) -> None:
    from surgery.models.multiscreen.configuration import MultiscreenConfig

    assert plan_new("multiscreen", {"psi": psi}, vocab_size=50_257).parameters == expected
    with torch.device("meta"):
        model = MultiscreenForCausalLM(
            MultiscreenConfig(50_257, hidden_size=psi**2, num_hidden_layers=psi, num_attention_heads=psi)
        )
    assert sum(parameter.numel() for parameter in model.parameters()) == expected
