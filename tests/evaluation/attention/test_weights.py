"""Streamed statistics of attention weights equal the statistics of the dense matrices."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from surgery.errors import SurgeryError
from surgery.evaluation.attention.weights import StatisticsSettings, observed_attention, range_edges
from surgery.evaluation.prefill import prefill
from tests.families import VOCABULARY, tiny_model

LENGTH = 41
EDGES = range_edges(LENGTH)


def _tokens(seed: int = 1) -> torch.Tensor:
    return torch.randint(3, VOCABULARY, (1, LENGTH), generator=torch.Generator().manual_seed(seed))


def _streamed(model: Any, chunk: int, first_tokens: int = 4) -> dict[str, Any]:
    with observed_attention(model, StatisticsSettings(EDGES, first_tokens, block=8)) as statistics:
        prefill(model, _tokens(), chunk)
    return statistics.result()


def _dense(model: Any, first_tokens: int = 4) -> dict[str, torch.Tensor]:
    """``(layers, heads, queries)`` of each statistic, from the weights that the family itself gives out."""
    model.set_attn_implementation("eager")
    with torch.no_grad():
        weights = torch.stack(model(input_ids=_tokens(), output_attentions=True, use_cache=False).attentions)[:, 0]
    return {
        "greatest": weights.amax(-1),
        "entropy": -torch.xlogy(weights, weights).sum(-1),
        "first": weights[..., :first_tokens].sum(-1),
    }


def _by_range(values: torch.Tensor, ranges: list[list[int]]) -> torch.Tensor:
    return torch.stack([values[..., first - 1 : last].mean(-1) for first, last in ranges], dim=-1)


def test_edges() -> None:
    assert EDGES == (1, 2, 3, 4, 6, 8, 11, 16, 23, 32, 41)


@pytest.mark.parametrize("backend", ["sdpa", "eager"])
@pytest.mark.parametrize("model_type", ["llama", "qwen3", "phi3", "cohere"])
def test_streamed_equals_dense(model_type: str, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("surgery.evaluation.attention.weights.ELEMENTS_AT_ONCE", 300)  # blocks of one or two rows
    model = tiny_model(model_type)
    model.set_attn_implementation(backend)
    before = model(input_ids=_tokens()).logits
    found = {chunk: _streamed(model, chunk) for chunk in (LENGTH, 16)}
    torch.testing.assert_close(model(input_ids=_tokens()).logits, before, atol=0, rtol=0)  # nothing is left behind
    dense = _dense(model)
    for streamed in found.values():
        assert all(rows == [last - first + 1 for first, last in streamed["ranges"]] for rows in streamed["rows"])
        assert streamed["ranges"][-1][1] == LENGTH and streamed["rejected_keys"] == [None] * len(streamed["layers"])
        for name, values in dense.items():
            own = torch.tensor(streamed[name])
            torch.testing.assert_close(own, _by_range(values, streamed["ranges"]).float(), atol=2e-6, rtol=0)


def test_soft_caps_and_sliding_windows() -> None:
    model = tiny_model("gemma2", attn_logit_softcapping=2.0)
    window = model.config.sliding_window
    streamed = _streamed(model, LENGTH)
    dense = _dense(model)
    sliding = [kind == "sliding_attention" for kind in model.config.layer_types]
    assert any(sliding) and window < LENGTH
    full = sliding.index(False)
    greatest = torch.tensor(streamed["greatest"][full])
    torch.testing.assert_close(
        greatest, _by_range(dense["greatest"][full], streamed["ranges"]).float(), atol=2e-6, rtol=0
    )
    beyond = [place for place, (first, _) in enumerate(streamed["ranges"]) if first > window]
    for layer in [number for number, slides in enumerate(sliding) if slides]:
        for head in streamed["greatest"][layer]:
            assert beyond and all(head[place] is None for place in beyond)  # n never grows beyond the window


def test_even_attention_has_the_entropy_of_ln_n() -> None:
    model = tiny_model("llama")
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.q_proj.weight.zero_()
    found = _streamed(model, LENGTH, first_tokens=2)
    for place, (first, last) in enumerate(found["ranges"]):
        contexts = range(first, last + 1)
        assert found["greatest"][0][0][place] == pytest.approx(sum(1 / n for n in contexts) / len(contexts), abs=1e-6)
        assert found["entropy"][0][0][place] == pytest.approx(sum(map(math.log, contexts)) / len(contexts), abs=1e-5)
        mass = sum(min(1, 2 / n) for n in contexts) / len(contexts)
        assert found["first"][0][0][place] == pytest.approx(mass, abs=1e-6)


def test_weights_that_are_no_numbers_are_an_error() -> None:
    model = tiny_model("llama")
    with torch.no_grad():
        model.model.layers[1].self_attn.q_proj.weight[0, 0] = float("nan")
    with pytest.raises(SurgeryError, match="attention weights of layer 1 are not finite"):
        _streamed(model, LENGTH)


def test_masks_of_other_kinds_are_refused() -> None:
    model = tiny_model("llama")
    with (
        observed_attention(model, StatisticsSettings(EDGES)) as statistics,
        pytest.raises(SurgeryError, match="mask of type str"),
    ):
        statistics.attention(
            model.model.layers[0].self_attn, torch.zeros(1, 4, 1, 8), torch.zeros(1, 4, 1, 8), "odd", {}
        )


def test_a_model_that_cannot_be_watched_says_so() -> None:
    with observed_attention(tiny_model("llama"), StatisticsSettings(EDGES)) as statistics:
        pass
    with pytest.raises(SurgeryError, match="cannot be observed"):
        statistics.result()


@pytest.mark.parametrize("chunk", [LENGTH, 16])
def test_what_screening_rejects(make_source: Any, tmp_path: Any, chunk: int) -> None:
    import surgery
    from surgery.loading import load_model, operation_modules

    start = {"threshold": 0.1, "softness": 0.0, "log2_window": 4.0}
    out = surgery.convert(make_source("llama"), "screening", start=start, output=tmp_path / "out").output
    model = load_model(out)
    seen: dict[str, list[Any]] = {}
    for name, module in operation_modules(model).items():
        module.observer = lambda seen_now, name=name: seen.setdefault(name, []).append(seen_now)
    with torch.no_grad():
        model(input_ids=_tokens(), use_cache=False)
    for module in operation_modules(model).values():
        module.observer = None
    found = _streamed(model, chunk)
    for layer, blocks in enumerate(seen.values()):
        kept = torch.cat([(block.acceptance * block.allowed)[0] for block in blocks], 1)
        allowed = torch.cat([block.allowed[0, 0] for block in blocks])
        weights = torch.cat([block.weights[0] for block in blocks], 1) * kept
        weights = weights / weights.sum(-1, keepdim=True).clamp(min=1e-30)
        rejected = (allowed & (kept == 0)).sum((1, 2)) / allowed.sum()
        assert 0.2 < rejected.mean() < 1
        torch.testing.assert_close(torch.tensor(found["rejected_keys"][layer]), rejected.float(), atol=1e-6, rtol=0)
        tiles = [
            (slice(row, row + 8), slice(key, key + 8)) for row in range(0, LENGTH, 8) for key in range(0, row + 1, 8)
        ]
        empty = torch.stack([(kept[:, rows, keys] > 0).flatten(1).any(1).logical_not() for rows, keys in tiles])
        torch.testing.assert_close(
            torch.tensor(found["rejected_blocks"][layer]), empty.float().mean(0), atol=1e-6, rtol=0
        )
        greatest = _by_range(weights.amax(-1), found["ranges"])
        torch.testing.assert_close(torch.tensor(found["greatest"][layer]), greatest.float(), atol=2e-6, rtol=0)


def test_a_units_weights_are_shares_of_their_sum(make_source: Any, tmp_path: Any) -> None:
    import surgery
    from surgery.loading import load_model

    start = {"threshold": -0.2, "log2_window": 4.0}
    out = surgery.convert(make_source("llama"), "screening", form="unit", start=start, output=tmp_path / "out").output
    model = load_model(out)
    found = _streamed(model, LENGTH)
    seen: list[Any] = []
    screening = model.model.layers[0].self_attn.screening
    screening.observer = seen.append
    with torch.no_grad():
        model(input_ids=_tokens(), use_cache=False)
    kept = torch.cat([block.kept[0] for block in seen], 1)
    assert not torch.allclose(kept.sum(-1), torch.ones_like(kept.sum(-1)), atol=0.1)
    greatest = _by_range((kept / kept.sum(-1, keepdim=True).clamp(min=1e-30)).amax(-1), found["ranges"])
    torch.testing.assert_close(torch.tensor(found["greatest"][0]), greatest.float(), atol=2e-6, rtol=0)
