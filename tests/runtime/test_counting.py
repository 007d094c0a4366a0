"""count_visible_keys: one number per query, for every kind of mask."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from surgery.conversion import convert
from surgery.loading import load_model, operation_modules
from surgery.loading.caches import cache_of, with_cache
from surgery.operations.ssmax.modeling import SSMax
from surgery.runtime import count_visible_keys
from surgery.runtime.visible_keys import visible_keys_in_layer
from tests.families import WINDOW

CPU = torch.device("cpu")


def test_plain_causal() -> None:
    assert count_visible_keys(4, CPU).tolist() == [[1, 2, 3, 4]]


def test_continues_after_the_cache() -> None:
    assert count_visible_keys(2, CPU, past_length=5).tolist() == [[6, 7]]
    assert count_visible_keys(2, CPU, past_length=torch.tensor(5)).tolist() == [[6, 7]]


@given(
    padding=st.lists(st.integers(0, 5), min_size=1, max_size=3),
    length=st.integers(6, 12),
    past=st.integers(0, 4),
    spare=st.integers(0, 3),
)
def test_left_padding_counts_real_keys(padding: list[int], length: int, past: int, spare: int) -> None:
    """The mask covers cache and queries, and perhaps the rest of a static cache."""
    total = past + length
    mask = (torch.arange(total + spare)[None] >= torch.tensor(padding)[:, None]).long()
    found = count_visible_keys(length, CPU, attention_mask=mask, past_length=past)
    expected = (torch.arange(past, total)[None] + 1 - torch.tensor(padding)[:, None]).clamp(min=1)
    assert torch.equal(found, expected.float())


def test_packed_documents_restart() -> None:
    positions = torch.tensor([[0, 1, 2, 0, 1]])
    assert count_visible_keys(5, CPU, position_ids=positions).tolist() == [[1, 2, 3, 1, 2]]


def test_the_least_of_positions_and_mask() -> None:
    mask = torch.tensor([[0, 0, 1, 1, 1]])
    found = count_visible_keys(5, CPU, attention_mask=mask, position_ids=torch.arange(5)[None])
    assert found.tolist() == [[1, 1, 1, 2, 3]]


@pytest.mark.parametrize("additive", [False, True])
def test_four_dimensional_masks_are_counted_by_row(additive: bool) -> None:
    allowed = torch.ones(5, 8, dtype=torch.bool).tril(diagonal=3)
    allowed[:, :2] = False
    mask = allowed[None, None]
    if additive:
        mask = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
    found = count_visible_keys(5, CPU, attention_mask=mask, past_length=3)
    assert found.tolist() == [[2, 3, 4, 5, 6]]


def test_masks_by_layer_type_are_counted_on_the_full_one() -> None:
    full = torch.ones(4, 4, dtype=torch.bool).tril()[None, None]
    sliding = full & ~torch.ones(4, 4, dtype=torch.bool).tril(diagonal=-2)
    masks = {"sliding_attention": sliding, "full_attention": full}
    assert count_visible_keys(4, CPU, attention_mask=masks).tolist() == [[1, 2, 3, 4]]


def test_positions_of_three_dimensions_are_not_counts() -> None:
    positions = torch.zeros(3, 1, 4, dtype=torch.long)
    assert count_visible_keys(4, CPU, position_ids=positions).tolist() == [[1, 2, 3, 4]]


def test_n_saturates_at_the_window_of_an_engine_that_gives_no_mask() -> None:
    n = torch.tensor([[1.0, 3.0, 8.0, 20.0, 500.0]])
    assert visible_keys_in_layer(n, None, "engine", 600, 8, None).tolist() == [[1, 3, 8, 8, 8]]
    assert visible_keys_in_layer(n, None, "engine", 600, None, None) is n
    assert visible_keys_in_layer(n, None, "engine", 600, None, 8).tolist() == [[1, 3, 8, 4, 4]]


def test_a_window_counts_the_real_keys_of_a_mask_of_two_dimensions() -> None:
    """As for FlashAttention: a hole of three keys in a row of eight, whose last five are queries."""
    mask = torch.tensor([[1, 1, 0, 0, 0, 1, 1, 1]])
    n = torch.full((1, 5), 8.0)
    assert visible_keys_in_layer(n, mask, "flash_attention_2", 8, 4, None).tolist() == [[2, 1, 1, 2, 3]]
    assert visible_keys_in_layer(n, mask, "flash_attention_2", 8, None, None).tolist() == [[2, 2, 3, 4, 5]]


def test_an_engine_that_keeps_the_keys_counts_by_positions() -> None:
    positions = torch.tensor([[30, 31, 5]])
    assert count_visible_keys(3, CPU, position_ids=positions, past_length=None).tolist() == [[31, 32, 6]]
    assert count_visible_keys(3, CPU, position_ids=positions, past_length=10).tolist() == [[11, 12, 6]]


@given(st.integers(1, 10**6), st.integers(2, 10**6), st.floats(0.01, 1.0))
def test_forms_follow_their_equations(n: int, reference: int, scale: float) -> None:
    count = torch.tensor([[float(n)]])
    log_n, log_reference = torch.tensor(n).double().log(), torch.tensor(reference).double().log()
    expected = {
        "paper": scale * log_n,
        "bias": scale * log_n + 0.5,
        "anchored": 1 + scale * (log_n - log_reference),
        "logn": (log_n / log_reference).clamp(min=1),
        "constant": torch.tensor(scale),
    }
    starts = {
        "paper": {"scale": scale},
        "bias": {"scale": scale, "bias": 0.5},
        "anchored": {"scale": scale},
        "logn": {},
        "constant": {"bias": scale},
    }
    for form, value in expected.items():
        module = SSMax(
            {"form": form, "reference_length": None if form == "constant" else reference, "start": starts[form]},
            num_heads=1,
        )
        assert module(count).item() == pytest.approx(value.item(), rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("padding", [0, 5])
def test_n_begins_anew_with_each_chunk(make_source: Any, tmp_path: Path, padding: int) -> None:
    """In the layers that have chunks, of a row's own tokens; the layers with all keys are scaled by the family."""
    model: Any = load_model(convert(make_source("llama4_text"), layers="chunked", output=tmp_path / "out").output)
    modules: dict[str, Any] = operation_modules(model)
    assert list(modules) == [f"model.layers.{layer}.self_attn.ssmax" for layer in (0, 2)]
    seen: list[torch.Tensor] = []
    for module in modules.values():
        module.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    length = 2 * WINDOW + 3
    mask = torch.cat([torch.zeros(1, padding), torch.ones(1, length)], dim=1).long()
    with torch.no_grad():
        model(input_ids=torch.full_like(mask, 5), attention_mask=mask)
        out = model(
            input_ids=torch.full_like(mask, 5)[:, : padding + WINDOW], attention_mask=mask[:, : padding + WINDOW]
        )
        model(
            input_ids=torch.tensor([[5]]), attention_mask=mask[:, : padding + WINDOW + 1], **with_cache(cache_of(out))
        )
    expected = [*range(1, WINDOW + 1), *range(1, WINDOW + 1), 1, 2, 3]
    assert [n[0, padding:].tolist() for n in seen[:2]] == [expected] * 2
    assert [n.tolist() for n in seen[4:]] == [[[1.0]]] * 2


def test_n_of_a_chunked_layer_is_what_its_mask_lets_through(make_source: Any, tmp_path: Path) -> None:
    """A mask of four dimensions is not cut into chunks; one with a hole is cut by its columns."""
    model: Any = load_model(convert(make_source("llama4_text"), layers="chunked", output=tmp_path / "out").output)
    modules: dict[str, Any] = operation_modules(model)
    seen: list[torch.Tensor] = []
    next(iter(modules.values())).register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    length = 2 * WINDOW + 4
    ids = torch.full((1, length), 5)
    whole = torch.ones(length, length, dtype=torch.bool).tril()[None, None]
    hole = torch.ones_like(ids)
    hole[:, 4:9] = 0
    with torch.no_grad():
        for mask in (whole, hole):
            model(input_ids=ids, attention_mask=mask)
    assert seen[0].tolist() == [list(range(1, length + 1))]
    real = [1, 2, 3, 4, *[4] * 5, *range(5, WINDOW - 4), *range(1, WINDOW + 1), 1, 2, 3, 4]
    assert [n for n, is_real in zip(seen[1][0].tolist(), hole[0].tolist(), strict=True) if is_real] == [
        n for n, is_real in zip(real, hole[0].tolist(), strict=True) if is_real
    ]
