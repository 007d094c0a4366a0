"""The windowed cache: the keys that it keeps, and equal answers although it keeps fewer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import DynamicCache, StaticCache

from surgery.loading import operation_modules, operations_off
from surgery.loading.caches import cache_of, with_cache
from surgery.operations.screening.modeling import WindowedCache, WindowedLayer
from surgery.operations.screening.modeling.key_store import SPARE
from tests.families import TINY
from tests.runtime.test_family_matrix import BOUND, load, logits, tokens
from tests.runtime.test_screening_matrix import screened

# Heads 0 and 1 share keys, and so do 2 and 3: the first two look 9 keys back at most, the others 5 and everywhere.
WINDOWS = (9, 6, 5, 64)
SINKS = 2


@pytest.fixture(autouse=True)
def in_pages_of_its_own(monkeypatch: Any) -> None:
    """Keep even these few keys as many are kept."""
    monkeypatch.setattr("surgery.operations.screening.modeling.key_store.MAPPED", 1)


def windowed(make_source: Any, out: Path, family: str = "llama", windows: tuple[int, ...] = WINDOWS) -> Any:
    model = load(screened(make_source(family), out, sinks=SINKS))
    modules: dict[str, Any] = operation_modules(model)
    with torch.no_grad():
        for module in modules.values():
            module.threshold.copy_(torch.tensor([-0.3, 0.1, -3.0, 0.2]))
            module.softness.copy_(torch.tensor([0.1, 0.3, 0.0, 0.2]))
            module.log2_window.copy_(torch.tensor(windows).float().log2())
    return model


def run(model: Any, cache: Any, ids: torch.Tensor, pieces: tuple[int, ...], mask: torch.Tensor | None) -> torch.Tensor:
    """The tokens in pieces of these lengths through a cache."""
    found, start = [], 0
    for length in pieces:
        stop = start + length
        given: dict[str, Any] = {}
        if mask is not None:
            given = {"attention_mask": mask[:, :stop]}
            given["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)[:, start:stop]
        with torch.no_grad():
            out = model(input_ids=ids[:, start:stop], **with_cache(cache), **given)
        found.append(out.logits)
        start = stop
    assert start == ids.shape[1] and cache.get_seq_length() == start
    return torch.cat(found, 1)


def rows(*padding: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of 40 tokens, each with the given numbers of padding tokens on the left, and after the 20th token."""
    ids = torch.cat([tokens(40).roll(number, -1) for number in range(len(padding))])
    mask = torch.ones_like(ids)
    for row, (left, middle) in enumerate(padding):
        mask[row, :left] = 0
        mask[row, 20 - middle : 20] = 0
    return ids, mask


CASES: dict[str, Any] = {
    "one row": (((0, 0),), False),
    "one row with a mask": (((0, 0),), True),
    "left-padded": (((7, 0),), True),
    "rows of unequal lengths": (((0, 0), (11, 0), (3, 0)), True),
    "padded on the right of the prompt": (((0, 0), (2, 6)), True),
}
# Families, as configured in the tests, for which there is nothing to be dropped, or whose code wants all keys.
UNABLE = {
    **dict.fromkeys(("cohere2", "cohere2_moe", "exaone_moe", "falcon_h1"), "windowed_cache needs a layer"),
    "diffllama": "use a cache of another kind",
    "gemma3": "2-D attention mask",  # it makes masks of four dimensions itself, for the tokens of images
}
HARDEST = "padded on the right of the prompt"
PIECES = {
    "prefill and tokens": (20, *[1] * 20),
    "chunks and tokens": (8, 12, 3, 9, *[1] * 8),
    "tokens": (1,) * 40,
    "two turns": (20, *[1] * 7, 3, *[1] * 10),
}


@pytest.mark.parametrize(
    ("family", "case"),
    [
        # In short: each case once, and dense attention with a soft cap and sliding layers (gemma2) on the hardest.
        pytest.param(
            family,
            case,
            marks=[] if family == "llama" or (family, case) == ("gemma2", HARDEST) else [pytest.mark.slow],
        )
        for family in ("gemma2", "llama", "qwen3")
        for case in CASES
    ],
)
def test_the_answer_is_that_of_a_cache_with_all_keys(make_source: Any, tmp_path: Path, family: str, case: str) -> None:
    model = windowed(make_source, tmp_path / "out", family)
    ids, mask = rows(*CASES[case][0])
    for pieces in PIECES.values():
        given = (ids, pieces, mask if CASES[case][1] else None)
        expected = run(model, DynamicCache(config=model.config), *given)
        cache = WindowedCache(model)
        found = run(model, cache, *given)
        assert any(isinstance(layer, WindowedLayer) for layer in cache.layers)
        assert (found - expected)[mask.bool()].abs().max() < BOUND


def open_thresholds(model: Any) -> Any:
    modules: dict[str, Any] = operation_modules(model)
    with torch.no_grad():
        for module in modules.values():
            module.threshold.fill_(-3.0)
            module.softness.fill_(0.0)
    return model


@pytest.mark.parametrize("windows", [(9, 9, 5, 5), (9, 9, 64, 64), (5, 64, 64, 64)])
@pytest.mark.parametrize("case", CASES)
def test_windows_without_thresholds_give_the_same_answer(
    make_source: Any, tmp_path: Path, case: str, windows: tuple[int, ...]
) -> None:
    model = open_thresholds(windowed(make_source, tmp_path / "out", windows=windows))
    ids, mask = rows(*CASES[case][0])
    for pieces in PIECES.values():
        given = (ids, pieces, mask if CASES[case][1] else None)
        expected = run(model, DynamicCache(config=model.config), *given)
        assert (run(model, WindowedCache(model), *given) - expected)[mask.bool()].abs().max() < BOUND


@pytest.mark.parametrize("windows", [(9, 9, 5, 5), (9, 9, 64, 64), (30, 30, 64, 64)])
def test_a_prompt_in_chunks_needs_no_blocks_without_padding(
    make_source: Any, tmp_path: Path, windows: tuple[int, ...], monkeypatch: Any
) -> None:
    """A long prompt in small blocks would take many times as long."""
    model = open_thresholds(windowed(make_source, tmp_path / "out", windows=windows))
    ids, _ = rows((0, 0), (0, 0))
    monkeypatch.setattr("surgery.operations.screening.modeling.kept_keys.blocks", None)
    run(model, WindowedCache(model), ids, PIECES["chunks and tokens"], None)


@pytest.mark.parametrize("windows", [(9, 9, 64, 64), (30, 30, 64, 64), (48, 48, 50, 50)])
@pytest.mark.parametrize("case", ["one row", "rows of unequal lengths"])
def test_a_token_is_written_in_place(
    make_source: Any, tmp_path: Path, case: str, windows: tuple[int, ...], monkeypatch: Any
) -> None:
    """Also before a window is full; when it is, its keys get a ring and lie still again."""
    model = open_thresholds(windowed(make_source, tmp_path / "out", windows=windows))
    ids, mask = rows(*CASES[case][0])
    given = {"attention_mask": mask, "position_ids": (mask.cumsum(-1) - 1).clamp(min=0)}
    cache = WindowedCache(model)

    def step(start: int, stop: int) -> None:
        place = {"position_ids": given["position_ids"][:, start:stop]}
        with torch.no_grad():
            model(ids[:, start:stop], **with_cache(cache), attention_mask=mask[:, :stop], **place)

    step(0, 20)
    step(20, 21)
    layer: Any = cache.layers[0]
    moves = [0] * len(layer.stores)
    before = [store.held[0].data_ptr() for store in layer.stores]
    monkeypatch.setattr("surgery.operations.screening.modeling.kept_keys.blocks", None)
    if windows[0] == 9:
        monkeypatch.setattr(torch.Tensor, "argsort", None)
    for token in range(21, 36):
        step(token, token + 1)
        now = [store.held[0].data_ptr() for store in layer.stores]
        moves = [count + (a != b) for count, a, b in zip(moves, before, now, strict=True)]
        before = now
    assert max(moves) <= (windows[0] == 30), "once, where the window becomes full"


def test_a_mask_that_hides_earlier_tokens_later_is_followed(make_source: Any, tmp_path: Path) -> None:
    model = open_thresholds(windowed(make_source, tmp_path / "out", windows=(9, 9, 64, 64)))
    ids, mask = rows((0, 0), (11, 0))
    found = []
    for cache in (DynamicCache(config=model.config), WindowedCache(model)):
        run(model, cache, ids[:, :30], (20, *[1] * 10), mask[:, :30])
        later = mask[:, :31].clone()
        later[0, 15] = 0  # outside of the windows, which count real keys
        with torch.no_grad():
            places = torch.tensor([[29], [19]])
            found.append(model(ids[:, 30:31], **with_cache(cache), attention_mask=later, position_ids=places).logits)
    assert (found[0] - found[1]).abs().max() < BOUND


@pytest.mark.parametrize("case", ["one row", HARDEST])
def test_only_windows_and_first_keys_are_kept(make_source: Any, tmp_path: Path, case: str) -> None:
    model = windowed(make_source, tmp_path / "out")
    ids, mask = rows(*CASES[case][0])
    cache, everything = WindowedCache(model), DynamicCache(config=model.config)
    run(model, cache, ids, (20, *[1] * 20), mask)
    run(model, everything, ids, (20, *[1] * 20), mask)
    one = 2 * 8 * 4 * ids.shape[0]  # bytes of a key and a value of one key-value head: 8 numbers of float32 each
    (first,) = {layer.nbytes() for layer in cache.layers if isinstance(layer, WindowedLayer)}
    assert one * (SINKS + 9 + 40) <= first <= one * (SINKS + 9 + 40 + SPARE)
    assert cache.nbytes() == 3 * first
    assert sum(layer.keys.nbytes + layer.values.nbytes for layer in everything.layers) == 3 * one * 80


def test_nothing_else_holds_the_memory_of_what_was_dropped(make_source: Any, tmp_path: Path) -> None:
    model = windowed(make_source, tmp_path / "out", windows=(9, 6, 5, 7))
    cache = WindowedCache(model)
    run(model, cache, tokens(40), (40,), None)
    for layer in cache.layers:
        for store in layer.stores:
            kept = store.group()
            memory = {one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in store.held}
            assert sum(memory.values()) <= sum(one.nbytes + 64 for one in store.held)
            assert kept.columns.tolist() == [[0, 1, *range(40 - kept.window + 1, 40)]]


@pytest.mark.parametrize(
    "family", [family if family == "llama" else pytest.param(family, marks=pytest.mark.slow) for family in sorted(TINY)]
)
def test_generate_uses_it_where_the_config_says_so(make_source: Any, tmp_path: Path, family: str) -> None:
    model = windowed(make_source, tmp_path / "out", family)
    prompt = torch.nn.functional.pad(tokens(20), (4, 0))
    given = {"attention_mask": (torch.arange(24) >= 4).long()[None], "max_new_tokens": 12, "do_sample": False}
    given |= {"return_dict_in_generate": True, "output_logits": True}
    expected = model.generate(prompt, **given)
    assert not isinstance(cache_of(expected), WindowedCache)
    model.config.windowed_cache = True
    if reason := UNABLE.get(family):
        with pytest.raises((ValueError, RuntimeError), match=reason):
            model.generate(prompt, **given)
        return
    model.save_pretrained(tmp_path / "saved")
    found = load(tmp_path / "saved").generate(prompt, **given)
    assert isinstance(cache_of(found), WindowedCache)
    assert any(isinstance(layer, WindowedLayer) for layer in cache_of(found).layers)
    for one, other in zip(found.logits, expected.logits, strict=True):
        assert (one - other).abs().max() < BOUND
    assert torch.equal(found.sequences, expected.sequences)


@pytest.mark.parametrize("chunk", [7, 20])
def test_generate_prefills_in_chunks_with_the_same_answer(make_source: Any, tmp_path: Path, chunk: int) -> None:
    model = windowed(make_source, tmp_path / "out")
    ids, mask = rows((0, 0), (11, 0))
    given = {"attention_mask": mask, "max_new_tokens": 6, "do_sample": False}
    given |= {"return_dict_in_generate": True, "output_logits": True}
    expected = model.generate(ids, **given)  # at once, with all keys
    model.config.windowed_cache = True
    lengths: list[int] = []
    model.model.register_forward_pre_hook(
        lambda _, args, kwargs: lengths.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    found = model.generate(ids, prefill_chunk_size=chunk, **given)
    assert isinstance(cache_of(found), WindowedCache)
    assert max(lengths) == chunk and sum(lengths) == 40 + 5
    for one, other in zip(found.logits, expected.logits, strict=True):
        assert (one - other).abs().max() < BOUND


def test_from_pretrained_takes_it_and_a_plain_forward_makes_it(make_source: Any, tmp_path: Path) -> None:
    model = windowed(make_source, tmp_path / "out")
    model.save_pretrained(tmp_path / "saved")
    again = load(tmp_path / "saved", windowed_cache=True)
    with torch.no_grad():
        out = again(input_ids=tokens(), use_cache=True)
        assert isinstance(cache_of(out), WindowedCache)
        assert cache_of(again(input_ids=tokens(), use_cache=False)) is None
    assert "windowed_cache" not in model.config.to_json_string()
    assert '"windowed_cache": true' in again.config.to_json_string()


def test_beams_and_other_orders_of_rows(make_source: Any, tmp_path: Path) -> None:
    model = windowed(make_source, tmp_path / "out")
    ids, mask = rows((0, 0), (11, 0))
    given = {"attention_mask": mask, "num_beams": 3, "max_new_tokens": 8}
    expected = model.generate(ids, **given)
    model.config.windowed_cache = True
    assert torch.equal(model.generate(ids, **given), expected)


def test_a_static_cache_is_still_there_for_the_asking(make_source: Any, tmp_path: Path) -> None:
    model = windowed(make_source, tmp_path / "out")
    given = {"max_new_tokens": 4, "do_sample": False, "return_dict_in_generate": True}
    expected = model.generate(tokens(20), **given)
    model.config.windowed_cache = True
    found = model.generate(tokens(20), cache_implementation="static", **given)
    assert isinstance(cache_of(found), StaticCache)
    assert torch.equal(found.sequences, expected.sequences)


def test_what_it_cannot_do_is_an_error(make_source: Any, tmp_path: Path) -> None:
    model = windowed(make_source, tmp_path / "out", windows=(9, 6, 5, 7))
    cache = WindowedCache(model)
    run(model, cache, tokens(20), (20,), None)
    with pytest.raises(ValueError, match="cropped"):
        cache.crop(-2)
    with operations_off(model), pytest.raises(ValueError, match="without screening"):
        model(input_ids=tokens(1), **with_cache(cache))
    cache = WindowedCache(model)
    run(model, cache, tokens(20), (20,), None)
    modules: dict[str, Any] = operation_modules(model)
    for module in modules.values():
        with torch.no_grad():
            module.log2_window.fill_(4.0)
    with pytest.raises(ValueError, match="windows have grown"):
        model(input_ids=tokens(1), **with_cache(cache))
    with pytest.raises(ValueError, match="2-D attention mask"):
        model(
            input_ids=tokens(4),
            **with_cache(WindowedCache(model)),
            attention_mask=torch.ones(4, 4, dtype=torch.bool).tril()[None, None],
        )
    with pytest.raises(ValueError, match="needs a layer with screening"):
        WindowedCache(load(make_source("llama")))


def test_code_that_wants_all_keys_is_told(make_source: Any, tmp_path: Path) -> None:
    model = windowed(make_source, tmp_path / "out")
    cache = WindowedCache(model)
    run(model, cache, tokens(20), (20,), None)
    cache.note(None, torch.tensor([[21.0]]))
    key, _ = cache.layers[0].update(torch.zeros(1, 2, 1, 8), torch.zeros(1, 2, 1, 8))
    assert key.shape == (1, 2, 21, 8)
    with pytest.raises(RuntimeError, match="use a cache of another kind"):
        key.transpose(1, 2)


def test_without_a_cache_nothing_changes(make_source: Any, tmp_path: Path) -> None:
    model = windowed(make_source, tmp_path / "out")
    expected = logits(model, tokens())
    model.config.windowed_cache = True
    assert torch.equal(logits(model, tokens()), expected)
