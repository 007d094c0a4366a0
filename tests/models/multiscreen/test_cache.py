"""The cache keeps of each head the keys within its window, and the logits stay the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import DynamicCache

from surgery.loading.caches import cache_of, named, new_cache
from tests.models.multiscreen.conftest import VOCABULARY, make


@pytest.fixture
def long_tokens() -> torch.Tensor:
    return torch.randint(VOCABULARY, (2, 180), generator=torch.Generator().manual_seed(3))


@torch.no_grad()
def decoded(model: Any, tokens: Any, first: int, cache: Any, mask: Any = None) -> torch.Tensor:
    """Logits of a prompt of ``first`` tokens and then one token at a time."""
    pieces, ends = [], [first, *range(first + 1, tokens.shape[1] + 1)]
    for start, end in zip([0, *ends], ends, strict=False):
        masked = {} if mask is None else {"attention_mask": mask[:, :end]}
        pieces.append(model(tokens[:, start:end], use_cache=True, **named(cache), **masked).logits)
    return torch.cat(pieces, dim=1)


@pytest.mark.parametrize("first", [1, 7, 90])
def test_many_single_tokens(first: int, model: Any, long_tokens: Any) -> None:
    whole = model(long_tokens, use_cache=False).logits
    assert (decoded(model, long_tokens, first, new_cache(model)) - whole).abs().max() < 1e-5


def test_padded_rows(model: Any, long_tokens: Any) -> None:
    mask = torch.ones_like(long_tokens)
    mask[1, :25] = 0
    found = decoded(model, long_tokens, 40, new_cache(model), mask)
    assert (found[:1] - model(long_tokens[:1], use_cache=False).logits).abs().max() < 1e-5
    assert (found[1:, 25:] - model(long_tokens[1:, 25:], use_cache=False).logits).abs().max() < 1e-5


def test_only_what_the_windows_see_is_kept(long_tokens: Any) -> None:
    """Windows of 4.2 and 11.4 tokens are one group, which keeps 11 keys back; the third head keeps all keys."""
    model = make()
    cache = new_cache(model)
    decoded(model, long_tokens, 100, cache)
    assert cache.get_seq_length() == 180
    for layer in cache.layers:
        near, far = layer.kept
        assert near.group.heads == [0, 1] and near.group.reach == 12 and far.group.reach is None
        assert all(buffer.shape[2 if buffer.dim() == 4 else 1] <= 12 + 64 for buffer in near.buffers)
        assert far.end - far.begin == 180
        # Keys of 6, values of 8 and one number for the document, in float32, and no other head's memory behind them.
        stored = sum(buffer.untyped_storage().nbytes() for kept in layer.kept for buffer in kept.buffers)
        assert stored == layer.nbytes() <= 2 * 4 * ((2 * 14 + 1) * (12 + 64) + (14 + 1) * (180 + 64))


def test_another_cache_keeps_all_keys(model: Any, long_tokens: Any) -> None:
    whole = model(long_tokens, use_cache=False).logits
    cache = DynamicCache()
    assert (decoded(model, long_tokens, 100, cache) - whole).abs().max() < 1e-5
    assert cache.layers[0].keys.shape[2] == 180


@pytest.mark.parametrize("change", ["reorder_cache", "batch_select_indices", "batch_repeat_interleave"])
def test_rows_are_changed(change: str, model: Any, long_tokens: Any) -> None:
    """As beam search and contrastive search do."""
    cache = new_cache(model)
    rows = torch.tensor([0, 0, 1, 1] if change == "batch_repeat_interleave" else [1, 1, 0])
    with torch.no_grad():
        model(long_tokens[:, :40], use_cache=True, **named(cache))
        getattr(cache, change)(2 if change == "batch_repeat_interleave" else rows)
        found = model(long_tokens[rows, 40:50], use_cache=True, **named(cache)).logits
    assert (found - model(long_tokens[rows, :50], use_cache=False).logits[:, 40:]).abs().max() < 1e-5


def test_generate_makes_this_cache(model: Any, long_tokens: Any) -> None:
    out = model.generate(long_tokens[:1, :20], max_new_tokens=3, return_dict_in_generate=True, pad_token_id=0)
    assert type(cache_of(out)).__name__ == "MultiscreenCache"


def test_a_cache_can_be_cut_back_until_keys_are_gone(model: Any, long_tokens: Any) -> None:
    cache = new_cache(model)
    with torch.no_grad():
        model(long_tokens[:, :9], use_cache=True, **named(cache))
        cache.crop(-4)
        continued = model(long_tokens[:, 5:9], use_cache=True, **named(cache)).logits
    assert (continued - model(long_tokens[:, :9], use_cache=False).logits[:, 5:]).abs().max() < 1e-5
    decoded(model, long_tokens[:, 9:60], 40, cache)
    with pytest.raises(ValueError, match="cannot be cut back"):
        cache.crop(-4)


def test_gradients_reach_cached_keys(model: Any, long_tokens: Any) -> None:
    """A prompt in two pieces has the gradients of one piece."""
    tokens = long_tokens[:1, :30]
    model(tokens, use_cache=False).logits.square().sum().backward()
    whole = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    first = model(tokens[:, :20], use_cache=True)
    second = model(tokens[:, 20:], use_cache=True, **named(cache_of(first)))
    (first.logits.square().sum() + second.logits.square().sum()).backward()
    for one, parameter in zip(whole, model.parameters(), strict=True):
        assert (one - parameter.grad).abs().max() < 1e-4 * max(1, one.abs().max())
