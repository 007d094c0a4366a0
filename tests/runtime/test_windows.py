"""Windows without thresholds: torch's own kernel over the keys inside, nothing else touched, open heads untouched."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from surgery.loading import operation_modules
from surgery.loading.caches import with_cache
from surgery.operations.screening.modeling import Screening, WindowedCache, kept_keys
from surgery.runtime import VISIBLE_KEYS, operated_attention
from tests.runtime.test_family_matrix import BOUND, load, tokens
from tests.runtime.test_flex_attention import causal, packed
from tests.runtime.test_screening_matrix import screened

GROUPS, EACH, SIZE = 3, 2, 8
HEADS = GROUPS * EACH


def layer(windows: tuple[int, ...], sinks: int = 2) -> Any:
    """An attention module with a window for each key-value head, or for each head; 1024 for none; no thresholds."""
    module: Any = torch.nn.Module().eval()
    module.num_key_value_groups, module.is_causal = EACH, True
    start = {"threshold": -3.0, "softness": 0.05, "log2_window": 20.0}
    module.screening = Screening({"form": "gated", "sinks": sinks, "full_window": 1024, "start": start}, HEADS)
    with torch.no_grad():
        module.screening.log2_window.copy_(torch.tensor(of_heads(windows)).float().log2())
    return module


def of_heads(windows: tuple[int, ...]) -> tuple[int, ...]:
    return windows if len(windows) == HEADS else tuple(window for window in windows for _ in range(EACH))


def tensors(length: int, queries: int, batch: int = 2) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(length)
    query = torch.randn(batch, HEADS, length, SIZE, generator=generator)[:, :, length - queries :]
    return [query, *(torch.randn(batch, GROUPS, length, SIZE, generator=generator) for _ in range(2))]


def attend(module: Any, given: list[torch.Tensor], n: torch.Tensor | None = None, backend: Any = None) -> torch.Tensor:
    queries, keys = given[0].shape[2], given[1].shape[2]
    n = torch.arange(keys - queries + 1.0, keys + 1)[None] if n is None else n
    options = {"scaling": 0.4, VISIBLE_KEYS: n}
    with torch.no_grad():
        return operated_attention("sdpa", backend or sdpa_attention_forward, None, module, *given, None, **options)[0]


def by_hand(given: list[torch.Tensor], windows: tuple[int, ...], sinks: int) -> torch.Tensor:
    """softmax over the keys inside the window and the first ones, in float64."""
    query, key, value = (one.double() for one in given)
    queries, keys = query.shape[2], key.shape[2]
    distance = torch.arange(keys - queries, keys)[:, None] - torch.arange(keys)
    rows = []
    for head in range(HEADS):
        group = head // EACH
        window = of_heads(windows)[head]
        seen = (distance >= 0) & ((distance < window) | (window == 1024) | (torch.arange(keys) < sinks))
        scores = query[:, head] @ key[:, group].transpose(-1, -2) * 0.4
        rows.append(scores.masked_fill(~seen, -torch.inf).softmax(-1) @ value[:, group])
    return torch.stack(rows, 2)


# The last ones by head: an open head beside one with a window, for whose keys both are looked at.
WINDOWS = [(1024, 1024, 1024), (7, 1024, 7), (40, 7, 1024), (130, 130, 130), (1, 3, 1), (7, 1024, 40, 9, 1024, 1024)]


@pytest.mark.parametrize("sinks", [0, 2])
@pytest.mark.parametrize("windows", WINDOWS)
@pytest.mark.parametrize(("length", "queries"), [(300, 300), (131, 131), (5, 5), (133, 133), (300, 1), (6, 1)])
def test_it_is_the_softmax_over_what_is_inside(windows: tuple[int, ...], sinks: int, length: int, queries: int) -> None:
    given = tensors(length, queries)
    found = attend(layer(windows, sinks), given)
    assert (found - by_hand(given, windows, sinks)).abs().max() < 1e-5


@pytest.mark.parametrize("windows", WINDOWS)
def test_gradients_are_those_of_the_softmax_over_what_is_inside(windows: tuple[int, ...]) -> None:
    """Where the windows themselves do not learn; no matrix of all pairs is kept for the backward pass."""
    module, given = layer(windows), [one.requires_grad_() for one in tensors(300, 300)]
    module.screening.requires_grad_(False)
    pull = torch.randn(2, 300, HEADS, SIZE, generator=torch.Generator().manual_seed(1))
    n = torch.arange(1.0, 301)[None]
    options = {"scaling": 0.4, VISIBLE_KEYS: n}
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda one: kept.append(one.numel()) or one, lambda one: one):
        output = operated_attention("sdpa", sdpa_attention_forward, None, module, *given, None, **options)[0]
    (output * pull).sum().backward()
    found = [one.grad for one in given]
    again = [one.detach().clone().requires_grad_() for one in given]
    (by_hand(again, windows, 2) * pull).sum().backward()
    for one, other in zip(found, again, strict=True):
        assert (one - other.grad).abs().max() < 1e-4
    if max(windows) < 1024:
        assert module.screening.path == "sdpa in bands" and max(kept) < 2 * HEADS * 300 * 300


@pytest.mark.parametrize("queries", [1, 400])
def test_what_lies_outside_is_never_touched(queries: int) -> None:
    module, given = layer((32, 32, 32)), tensors(400, queries)
    before = attend(module, given)
    given[1][:, :, 2:300] = given[2][:, :, 2:300] = torch.nan
    assert torch.equal(attend(module, given)[:, -1], before[:, -1])


@pytest.mark.parametrize("queries", [1, 300])
def test_open_heads_are_given_to_the_backend_as_they_are(queries: int) -> None:
    """One call for all of them, with the tensors of the layer where every head is open."""
    seen: list[tuple[int, int]] = []

    def backend(module: Any, query: torch.Tensor, key: torch.Tensor, *given: Any, **options: Any) -> Any:
        seen.append((key.shape[1], key.shape[2]))
        return sdpa_attention_forward(module, query, key, *given, **options)

    attend(layer((1024, 40, 1024)), tensors(300, queries), backend=backend)
    assert sorted(seen) == ([(2, 300)] if queries == 1 else [(1, 42), (2, 300)])


def test_positions_that_begin_late_have_no_first_keys() -> None:
    module, given = layer((7, 7, 7)), tensors(60, 60)
    late = torch.arange(101.0, 161.0)[None]
    assert (attend(module, given, late) - by_hand(given, (7, 7, 7), 0)).abs().max() < 1e-5


@pytest.mark.parametrize("windows", [(9, 9, 64, 64), (9, 9, 9, 9), (5, 9, 64, 64)])
def test_a_token_after_a_windowed_cache_is_given_to_the_backend(
    make_source: Any, tmp_path: Path, windows: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Groups of one window and no threshold: without a mask, and with their kept keys alone."""
    model = load(screened(make_source("llama"), tmp_path / "out", sinks=2))
    modules: dict[str, Any] = operation_modules(model)
    with torch.no_grad():
        for module in modules.values():
            module.log2_window.copy_(torch.tensor(windows).float().log2())
    calls = []
    blocks = kept_keys.blocks
    monkeypatch.setattr(kept_keys, "blocks", lambda *given, **more: calls.append(1) or blocks(*given, **more))
    ids, cache = tokens(40), WindowedCache(model)
    with torch.no_grad():
        expected = model(input_ids=ids, use_cache=False).logits
        found = [model(input_ids=piece, **with_cache(cache)).logits for piece in ids.split((20, *[1] * 20), 1)]
    assert (torch.cat(found, 1) - expected).abs().max() < BOUND
    assert bool(calls) == (windows[0] != windows[1])


MASKS: dict[str, Any] = {
    "left-padded rows": causal(150, 150, (0, 31)),
    "packed": packed(150, (70, 80)),
    "a chunk after a cache": causal(9, 150, (5, 0)),
    "one query after a cache": causal(1, 150, (0, 40)),
}


@pytest.mark.parametrize("windows", [(7, 1024, 7), (40, 7, 1024), (7, 1024, 40, 9, 1024, 1024)])
@pytest.mark.parametrize("case", MASKS)
def test_with_a_mask(case: str, windows: tuple[int, ...]) -> None:
    """The distance counts allowed keys; each document has its own first keys."""
    allowed, n = MASKS[case]
    given = tensors(150, allowed.shape[1], len(allowed))
    distance = allowed.flip(-1).cumsum(-1).flip(-1) - 1
    first = (n[..., None] - 1 - distance) < 2
    windows_of = torch.tensor(of_heads(windows))[:, None, None]
    seen = allowed[:, None] & ((distance[:, None] < windows_of) | first[:, None])
    real = allowed.any(-1)
    key, value = (one.double().repeat_interleave(EACH, 1) for one in given[1:])
    scores = given[0].double() @ key.transpose(-1, -2) * 0.4
    expected = (scores.masked_fill(~seen, -1e30).softmax(-1) @ value).transpose(1, 2)
    with torch.no_grad():
        options = {"scaling": 0.4, VISIBLE_KEYS: n}
        found = operated_attention(
            "sdpa", sdpa_attention_forward, None, layer(windows), *given, allowed[:, None], **options
        )[0]
    assert (found - expected)[real].abs().max() < 1e-5


def test_with_a_mask_what_lies_outside_is_never_touched() -> None:
    allowed, n = causal(400, 400, (0, 31))
    module, given = layer((32, 32, 32)), tensors(400, 400)

    def last() -> torch.Tensor:
        with torch.no_grad():
            return operated_attention(
                "sdpa", sdpa_attention_forward, None, module, *given, allowed[:, None], **{VISIBLE_KEYS: n}
            )[0][:, -1]

    before = last()
    given[1][:, :, 40:300] = given[2][:, :, 40:300] = torch.nan
    assert torch.equal(last(), before)
