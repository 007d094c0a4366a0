"""The logits are the same however a sequence is presented, and in bounded memory."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from surgery.models import new
from surgery.models.catalogue import own_model
from surgery.models.multiscreen import blocks
from surgery.models.multiscreen.modeling import _CACHE
from tests.models.multiscreen.conftest import make


def logits(model: Any, tokens: Any, **kwargs: Any) -> Any:
    with torch.no_grad():
        return model(tokens, **kwargs).logits


def test_a_cache_continues(model: Any, tokens: Any) -> None:
    whole = logits(model, tokens)
    with torch.no_grad():
        output = model(tokens[:, :21], use_cache=True)
        parts = [output.logits]
        for start, end in [(21, 22), (22, 23), (23, 27), (27, 40)]:
            output = model(tokens[:, start:end], use_cache=True, **{_CACHE: output[_CACHE]})
            parts.append(output.logits)
    assert (torch.cat(parts, dim=1) - whole).abs().max() < 1e-5


@pytest.mark.parametrize("positions", [False, True])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding(side: str, positions: bool, model: Any, tokens: Any) -> None:
    pad, mask = torch.zeros(2, 7, dtype=torch.long), torch.ones(2, 47, dtype=torch.long)
    padded = torch.cat((pad, tokens) if side == "left" else (tokens, pad), dim=1)
    real = slice(7, None) if side == "left" else slice(None, 40)
    mask[:, : 7 if side == "left" else 0] = 0
    mask[:, 40 if side == "right" else 47 :] = 0
    kwargs = {"position_ids": (mask.cumsum(-1) - 1).masked_fill(mask == 0, 1)} if positions else {}
    out = logits(model, padded, attention_mask=mask, **kwargs)[:, real]
    assert (out - logits(model, tokens)).abs().max() < 1e-5


def test_packed_documents_are_apart(model: Any, tokens: Any) -> None:
    lengths = [13, 20, 7]
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    packed = logits(model, tokens[:1], position_ids=positions)
    apart = [logits(model, part) for part in tokens[:1].split(lengths, dim=1)]
    assert (packed - torch.cat(apart, dim=1)).abs().max() < 1e-5


def test_packed_documents_have_their_own_gradients(model: Any, tokens: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several blocks, one row of documents: nothing of a document reaches the gradients of another."""
    monkeypatch.setattr(blocks, "_BLOCK", 8)
    lengths = [13, 20, 7]
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    model(tokens[:1], position_ids=positions, use_cache=False).logits.square().sum().backward()
    packed = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    for part in tokens[:1].split(lengths, dim=1):
        model(part, use_cache=False).logits.square().sum().backward()
    for one, parameter in zip(packed, model.parameters(), strict=True):
        assert (one - parameter.grad).abs().max() < 1e-5 * max(1, one.abs().max())


def test_generation_of_unequal_rows(model: Any, tokens: Any) -> None:
    short, long = tokens[:1, :9], tokens[1:, :20]
    padded = torch.cat((torch.cat((torch.zeros(1, 11, dtype=torch.long), short), dim=1), long))
    mask = torch.ones_like(padded)
    mask[0, :11] = 0
    settings: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    together = model.generate(padded, attention_mask=mask, **settings)[:, 20:]
    for row, prompt in enumerate((short, long)):
        for use_cache in (True, False):
            alone = model.generate(prompt, attention_mask=torch.ones_like(prompt), use_cache=use_cache, **settings)
            assert alone[0, prompt.shape[1] :].tolist() == together[row].tolist()


def test_gradient_checkpointing_and_bf16(tokens: Any) -> None:
    grads = []
    for checkpointing in (False, True):
        model = make().train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        model(tokens, labels=tokens).loss.backward()
        grads.append([parameter.grad for parameter in model.parameters()])
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*grads, strict=True))
    half = make().to(torch.bfloat16)
    assert (logits(half, tokens).float() - logits(make(), tokens)).abs().max() < 0.2


def test_the_start_values_and_saving_again(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    made = new("multiscreen", tmp_path / "out", vocab_size=50, psi=2, length=64)
    loaded = AutoModelForCausalLM.from_pretrained(made.output)
    assert sum(parameter.numel() for parameter in loaded.parameters()) == made.plan.parameters
    tiles = loaded.model.layers[0].tiles
    assert tiles.log_window.tolist() == pytest.approx([0, math.log(256)])
    assert tiles.log_output_scale.tolist() == pytest.approx([math.log(0.5)] * 2)
    assert loaded.log_logit_scale.item() == pytest.approx(math.log(2))
    tokens = torch.arange(20)[None]
    loaded.save_pretrained(tmp_path / "again")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "again")
    assert torch.equal(logits(again, tokens), logits(loaded, tokens))
    files = {path.name for path in made.output.glob("*.py")}
    assert files == own_model("multiscreen").code().keys()
    assert files == {path.name for path in (tmp_path / "again").glob("*.py")}


class LargestTensor(TorchDispatchMode):
    """Remembers the number of elements of the largest tensor that an operation gave."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return out


@pytest.mark.parametrize("training", [False, True])
def test_nothing_grows_faster_than_the_length(training: bool) -> None:
    largest = []
    for length in (1024, 2048):
        model = make(num_hidden_layers=1).train(training)
        tokens = torch.zeros(1, length, dtype=torch.long)
        with LargestTensor() as mode:
            output = model(tokens, labels=tokens)
            if training:
                output.loss.backward()
        largest.append(mode.elements)
        assert mode.elements < 3 * length * length / 4
    assert largest[1] <= 2.1 * largest[0]


def test_continuous_batching_is_refused(model: Any, tokens: Any) -> None:
    """By each of its ways in, before a request is accepted."""
    with pytest.raises(NotImplementedError, match="cannot run in continuous batching"):
        model.generate_batch(tokens.tolist(), max_new_tokens=2)
    with pytest.raises(NotImplementedError, match="padded batches"):
        model.generate(tokens, max_new_tokens=2, cache_implementation="paged")
