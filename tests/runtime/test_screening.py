"""The screening module alone: acceptance, surrogate gradients, heads without keys, refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from surgery.conversion import convert
from surgery.loading import operation_modules, operations_off
from surgery.operations.screening.modeling import Block, Screening, renormalised
from surgery.operations.screening.modeling.blocks import locate_keys
from surgery.runtime import VISIBLE_KEYS, operated_attention
from tests.runtime.test_family_matrix import load, logits, tokens
from tests.runtime.test_screening_matrix import screened, set_parameters

OPEN = {"threshold": -1.1, "softness": 0.05, "log2_window": 10.01}


def module(heads: int = 1, **values: Any) -> Screening:
    made = Screening({"form": "gated", "sinks": 0, "full_window": 1024, "start": OPEN}, heads)
    with torch.no_grad():
        for name, value in values.items():
            getattr(made, name).copy_(torch.as_tensor(value))
    return made


def accept(made: Screening, rho: torch.Tensor, sinks: torch.Tensor | None = None) -> torch.Tensor:
    """alpha of a row of keys; the last key is the query's own."""
    distance = torch.arange(len(rho) - 1, -1, -1)[None, None, None]
    none = torch.zeros_like(distance, dtype=torch.bool)
    return made.acceptance(rho[None, None, None], distance, none if sinks is None else sinks)[0, :, 0]


def test_trim_and_square() -> None:
    rho = torch.tensor([-1.0, 0.2, 0.3, 0.35, 0.4, 1.0])
    soft = accept(module(threshold=0.3, softness=0.1), rho)
    assert torch.allclose(soft, torch.tensor([[0.0, 0.0, 0.0, 0.25, 1.0, 1.0]]), atol=1e-5)
    hard = accept(module(threshold=0.3, softness=0.0), rho)
    assert torch.equal(hard, torch.tensor([[0.0, 0.0, 0.0, 1.0, 1.0, 1.0]]))


def test_the_window_counts_the_query_itself_and_sinks_are_kept() -> None:
    rho = torch.ones(6)
    windowed = module(log2_window=torch.tensor(2.0))
    assert accept(windowed, rho).tolist() == [[0, 0, 1, 1, 1, 1]]
    sinks = torch.tensor([True, False, False, False, False, False])[None, None, None]
    assert accept(windowed, rho, sinks).tolist() == [[1, 0, 1, 1, 1, 1]]


@pytest.mark.parametrize("softness", [0.0, 0.05, 0.5])
def test_open_means_below_minus_one_minus_softness(softness: float) -> None:
    assert module(threshold=-1.001 - softness, softness=softness).is_open()
    assert not module(threshold=-0.999 - softness, softness=softness).is_open()
    opposite = torch.tensor([-1.0])
    assert accept(module(threshold=-1.001 - softness, softness=softness), opposite).item() == 1.0


def test_openness_follows_the_parameters() -> None:
    made = module()
    assert made.is_open()
    with torch.no_grad():
        made.threshold += 1
    assert not made.is_open()
    with torch.no_grad():
        made.threshold -= 1
    assert made.is_open()
    with torch.no_grad():
        made.log2_window.fill_(9.9)
    assert not made.is_open()


def test_windows_are_whole_numbers_of_keys() -> None:
    sizes = torch.tensor([1.0, 2.0, 3.0, 100.0, 1023.0, 4097.0, 131071.0])
    made = module(heads=len(sizes), log2_window=sizes.log2())
    assert torch.equal(made.windows(), sizes)


@pytest.mark.parametrize("softness", [0.0, 0.1])
def test_gradients_reach_the_threshold_of_a_key_that_is_just_rejected(softness: float) -> None:
    """Lowering t would let it in: alpha's own gradient is zero there, the surrogate's is not."""
    made = module(threshold=0.3, softness=softness)
    alpha = accept(made, torch.tensor([0.29]))
    assert alpha.item() == 0.0
    alpha.sum().backward()
    assert made.threshold.grad is not None and made.threshold.grad.item() < -0.1


def test_inside_the_ramp_the_gradient_is_exact() -> None:
    made = module(threshold=0.3, softness=0.2)
    accept(made, torch.tensor([0.4])).sum().backward()
    assert made.threshold.grad is not None and made.softness.grad is not None
    assert made.threshold.grad.item() == pytest.approx(-2 * 0.1 / 0.2**2, rel=1e-4)
    assert made.softness.grad.item() == pytest.approx(-2 * 0.1**2 / 0.2**3, rel=1e-4)


def test_gradients_reach_a_window_whose_edge_is_an_integer() -> None:
    made = module(log2_window=torch.tensor(3.0))
    alpha = accept(made, torch.ones(20))
    assert alpha.sum().item() == 8
    alpha.sum().backward()
    assert made.log2_window.grad is not None and made.log2_window.grad.item() > 1.0


def test_nothing_survives_gives_zero_and_finite_gradients() -> None:
    weights = torch.tensor([[[[0.3, 0.7]]]], requires_grad=True)
    made = module(threshold=0.9, softness=0.1)
    accepted = made.acceptance(torch.tensor([[[[0.2, 0.5]]]]), torch.tensor([[[[1, 0]]]]), torch.zeros(1, dtype=bool))
    out = renormalised(weights, accepted, False)
    assert torch.equal(out, torch.zeros_like(out))
    (out * torch.tensor([1.0, 2.0])).sum().backward()
    assert made.threshold.grad is not None and made.threshold.grad.item() < 0
    assert torch.isfinite(made.threshold.grad).all() and torch.isfinite(weights.grad).all()


def test_a_heavy_rejected_key_pulls_no_harder_than_the_survivors() -> None:
    weights = torch.tensor([[[[1 - 1e-6, 1e-6]]]])
    accepted = torch.tensor([[[[0.0, 1.0]]]], requires_grad=True)
    out = renormalised(weights, accepted, False)
    out[..., 0].sum().backward()
    assert accepted.grad is not None and accepted.grad.abs().max() <= 1.0


def test_a_learned_sink_keeps_its_share() -> None:
    """softmax over keys and a sink, times alpha: the sink stays in the divisor."""
    scores = torch.tensor([[[[0.0, 1.0, 2.0]]]])
    sink = torch.tensor(0.5)
    whole = torch.cat([scores, sink.view(1, 1, 1, 1)], -1).softmax(-1)
    alpha = torch.tensor([[[[1.0, 0.25, 0.0]]]])
    expected = (scores.exp() * alpha) / ((scores.exp() * alpha).sum() + sink.exp())
    assert torch.allclose(renormalised(whole[..., :3], alpha, True), expected)


def test_places_in_a_packed_row_begin_anew() -> None:
    documents = torch.tensor([0, 0, 0, 1, 1])
    allowed = (documents[:, None] == documents[None]) & torch.ones(5, 5, dtype=torch.bool).tril()
    n = torch.tensor([[1.0, 2.0, 3.0, 1.0, 2.0]])
    distance, _, place = locate_keys(allowed[None, None], n, torch.arange(3, 5), 5, 5)
    assert distance[0, 0, 1, 3:].tolist() == [1, 0]
    assert place[0, 0, 1, 3:].tolist() == [0, 1]


def test_blocks_of_queries_agree_with_all_at_once(make_source: Any, tmp_path: Path, monkeypatch: Any) -> None:
    model = load(screened(make_source("llama"), tmp_path / "out"))
    set_parameters(model)
    for implementation in ("sdpa", "eager"):
        model.set_attn_implementation(implementation)
        whole = logits(model, tokens())
        monkeypatch.setattr("surgery.operations.screening.modeling.blocks.BLOCK_ELEMENTS", 4 * 48 * 7)
        assert (logits(model, tokens()) - whole).abs().max() < 1e-5
        monkeypatch.undo()


def test_everything_rejected_is_zero_in_every_path(make_source: Any, tmp_path: Path) -> None:
    model = load(screened(make_source("llama"), tmp_path / "out", sinks=0))
    modules: dict[str, Any] = operation_modules(model)
    seen: list[torch.Tensor] = []
    for name, one in model.named_modules():
        if name.endswith("o_proj"):
            one.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    for one in modules.values():
        with torch.no_grad():
            one.threshold.fill_(1.5)
    for implementation in ("sdpa", "eager"):
        seen.clear()
        model.set_attn_implementation(implementation)
        assert torch.isfinite(logits(model, tokens())).all()
        assert len(seen) == 3 and all((entry == 0).all() for entry in seen)
    model(input_ids=tokens(), labels=tokens()).loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_chosen_heads_only(make_source: Any, tmp_path: Path) -> None:
    model = load(screened(make_source("llama"), tmp_path / "out", heads="2"))
    (one, *_) = operation_modules(model).values()
    assert one.threshold.shape == (1,)  # type: ignore[union-attr]
    with torch.no_grad():
        one.threshold.fill_(2.0)  # type: ignore[union-attr, operator]
    rho = torch.rand(1, 4, 3, 5)
    distance = torch.arange(5).expand(1, 1, 3, 5)
    alpha = one.acceptance(rho, distance, torch.zeros_like(distance, dtype=torch.bool))  # type: ignore[union-attr,operator]
    assert (alpha[:, [0, 1, 3]] == 1).all() and (alpha[:, 2] == 0).all()


def test_off_is_the_source(make_source: Any, tmp_path: Path) -> None:
    source = load(make_source("qwen3"))
    model = load(screened(make_source("qwen3"), tmp_path / "out"))
    set_parameters(model)
    assert not torch.equal(logits(model, tokens()), logits(source, tokens()))
    with operations_off(model):
        assert torch.equal(logits(model, tokens()), logits(source, tokens()))


def test_a_backend_that_takes_no_mask_per_head_is_refused(make_source: Any, tmp_path: Path) -> None:
    AttentionInterface.register("engine", lambda *_, **__: None)
    AttentionMaskInterface.register("engine", sdpa_mask)
    try:
        model = load(screened(make_source("llama"), tmp_path / "out"))
        model.set_attn_implementation("engine")
        set_parameters(model)
        with pytest.raises(ValueError, match=r"screening needs .*sdpa"):
            logits(model, tokens())
    finally:
        del AttentionInterface._global_mapping["engine"]
        del AttentionMaskInterface._global_mapping["engine"]


@pytest.mark.parametrize("order", [("ssmax", "screening"), ("screening", "ssmax")])
def test_with_ssmax_the_relevance_is_that_of_the_query_before_its_multiplier(
    make_source: Any, tmp_path: Path, order: tuple[str, str]
) -> None:
    """The paper's multiplier is 0 at n = 1 and moves every score, but no cosine: the rejected keys stay the same."""
    options: dict[str, dict[str, Any]] = {
        "ssmax": {"name": "ssmax", "form": "bias", "start": {"scale": -0.9, "bias": 1.0}},
        "screening": {"name": "screening", "open": True},
    }
    model = load(convert(make_source("llama"), [options[name] for name in order], output=tmp_path / "out").output)
    set_screening(model)
    modules: dict[str, Any] = operation_modules(model)
    seen: list[torch.Tensor] = []
    first = next(module for name, module in modules.items() if name == "model.layers.0.self_attn.screening")
    first.observer = lambda observation: seen.append(observation.relevance)
    logits(model, tokens())
    for one in modules.values():
        if hasattr(one, "scale"):
            one.enabled = False
    logits(model, tokens())
    assert torch.equal(seen[0], seen[1])


def set_screening(model: Any) -> None:
    for name, one in operation_modules(model).items():
        if name.endswith(".screening"):
            with torch.no_grad():
                one.threshold.fill_(0.1)  # type: ignore[union-attr, operator]


def test_a_gain_multiplies_what_screening_puts_out(make_source: Any, tmp_path: Path) -> None:
    """Against the same screening with the columns of the output projections multiplied."""
    start = {"threshold": 0.1, "softness": 0.2}
    screening = {"name": "screening", "start": start}
    gains = {"name": "ssmax", "form": "none", "outputs": "gain", "heads": "1,2"}
    source = make_source("llama")
    # In float64: the ramp of a threshold multiplies the rounding of float32 by different amounts on each processor.
    both = load(convert(source, [screening, gains], output=tmp_path / "both").output).double()
    alone = load(convert(source, [screening], output=tmp_path / "alone").output).double()
    plain = logits(alone, tokens())
    for own, other in zip(both.model.layers, alone.model.layers, strict=True):
        with torch.no_grad():
            own.self_attn.ssmax.gain.copy_(torch.tensor([0.5, 1.75]))
            size = own.self_attn.head_dim
            columns = torch.ones(own.self_attn.o_proj.weight.shape[1])
            columns[size : 2 * size], columns[2 * size : 3 * size] = 0.5, 1.75
            other.self_attn.o_proj.weight *= columns
    assert (logits(both, tokens()) - logits(alone, tokens())).abs().max() < 1e-10
    assert (logits(both, tokens()) - plain).abs().max() > 1e-2


def test_both_orders_of_a_plan_give_the_same_model(make_source: Any, tmp_path: Path) -> None:
    ssmax, screening = {"name": "ssmax", "form": "paper"}, {"name": "screening", "open": True}
    results = []
    for number, operations in enumerate(([ssmax, screening], [screening, ssmax])):
        model = load(convert(make_source("llama"), operations, output=tmp_path / str(number)).output)
        set_screening(model)
        results.append(logits(model, tokens()))
    assert torch.equal(*results)


def test_bands_agree_with_a_mask_over_all_keys(make_source: Any, tmp_path: Path, monkeypatch: Any) -> None:
    """Without a mask each head gets the keys of its window alone; an explicit mask brings in all of them."""
    model = load(screened(make_source("llama"), tmp_path / "out", sinks=2))
    modules: dict[str, Any] = operation_modules(model)
    settings = [
        # threshold and window of heads 0 and 1, which share keys, and of 2 and 3
        ((-3.0, -3.0, -3.0, -3.0), (9, 11, 64, 64)),
        ((0.1, -3.0, -3.0, -3.0), (9, 64, 5, 3)),
        ((0.1, 0.2, -0.1, 0.0), (7, 9, 5, 3)),
        ((0.1, 0.2, -0.1, 0.0), (64, 64, 5, 64)),
    ]
    for blocks in (2**21, 4 * 48 * 5):
        monkeypatch.setattr("surgery.operations.screening.modeling.blocks.BLOCK_ELEMENTS", blocks)
        for thresholds, windows in settings:
            for module in modules.values():
                with torch.no_grad():
                    module.threshold.copy_(torch.tensor(thresholds))
                    module.log2_window.copy_(torch.tensor(windows).float().log2())
            banded = logits(model, tokens())
            assert {module.path for module in modules.values()} == {"sdpa in bands"}
            causal = torch.ones(48, 48, dtype=torch.bool).tril()[None, None]
            with torch.no_grad():
                dense = model(input_ids=tokens(), attention_mask=causal).logits
            assert {module.path for module in modules.values()} == {"sdpa"}
            assert (banded - dense).abs().max() < 1e-4


def test_what_lies_outside_every_window_is_never_touched(make_source: Any, tmp_path: Path) -> None:
    """Keys and values there may be anything: with NaN in their place, nothing changes."""
    model = load(screened(make_source("llama"), tmp_path / "out", sinks=2))
    (attention,) = [one for name, one in model.named_modules() if name == "model.layers.0.self_attn"]
    with torch.no_grad():
        attention.screening.log2_window.fill_(3.0)
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(1, 4, 1, 8, generator=generator)
    key, value = (torch.randn(1, 2, 40, 8, generator=generator) for _ in range(2))

    def run() -> torch.Tensor:
        backend = sdpa_attention_forward
        given = {VISIBLE_KEYS: torch.tensor([[40.0]]), "scaling": 0.3}
        with torch.no_grad():
            return operated_attention("sdpa", backend, None, attention, query, key, value, None, **given)[0]

    before = run()
    key[:, :, 2:32] = value[:, :, 2:32] = torch.nan
    assert torch.equal(run(), before)
    key[:, :, 1] = torch.nan
    assert torch.isnan(run()).any()


def test_bands_are_looked_up_again_when_a_parameter_changes() -> None:
    made = module(heads=4)
    assert [(band.window, band.accepting, band.groups) for band in made.bands(2)] == [(None, True, [0, 1])]
    with torch.no_grad():
        made.log2_window[3] = 3.0
        made.log2_window[2] = torch.tensor(100.0).log2()
        made.threshold[0] = 0.5
    assert [(band.window, band.accepting, band.groups) for band in made.bands(2)] == [
        (None, False, [0]),
        (128, True, [1]),
    ]


def counted(made: Screening, rho: torch.Tensor) -> torch.Tensor:
    """The result of count_rejected for a row of keys; the last key is the query's own."""
    relevance = rho[None, None, None]
    distance = torch.arange(len(rho) - 1, -1, -1)[None, None, None]
    none = torch.zeros_like(distance, dtype=torch.bool)
    block = Block(torch.tensor([len(rho) - 1]), len(rho), distance, ~none, none)
    return made.count_rejected(relevance, made.acceptance(relevance, distance, none), block)


@pytest.mark.parametrize("rho", [0.29, 0.31])
def test_the_count_is_exact_and_pulls_at_t_on_either_side_of_the_edge(rho: float) -> None:
    made = module(threshold=0.3, softness=0.05)
    number = counted(made, torch.tensor([rho, -0.5, 0.9]))
    assert number.tolist() == [2.0 if rho < 0.3 else 1.0]
    number.sum().backward()
    assert made.threshold.grad is not None and made.log2_window.grad is not None
    # x = 0.4 of the key near the edge, and the tails of the two others.
    expected = sum(1 / (0.05 * (1 + abs(other - 0.3) / 0.025) ** 2) for other in (rho, -0.5, 0.9))
    assert made.threshold.grad.item() == pytest.approx(expected, rel=1e-4)
    assert made.softness.grad is None or made.softness.grad.item() == 0.0


def test_the_count_pulls_at_an_open_head_and_at_a_window_near_its_edge_alone() -> None:
    made = module()
    counted(made, torch.linspace(-0.3, 0.9, 40)).sum().backward()
    assert made.threshold.grad is not None and made.threshold.grad.item() > 1e-3
    assert made.log2_window.grad is not None and made.log2_window.grad.item() == 0.0
    made = module(log2_window=torch.tensor(4.0))
    number = counted(made, torch.ones(40))
    assert number.tolist() == [24.0]
    number.sum().backward()
    assert made.log2_window.grad is not None and made.log2_window.grad.item() < -1.0


def test_a_text_teaches_nothing_to_a_window_that_reaches_far_beyond_it() -> None:
    made = module()
    accept(made, torch.ones(200)).sum().backward()
    assert made.log2_window.grad is not None and made.log2_window.grad.item() == 0.0


@pytest.mark.parametrize("softness", [0.0, 0.05, 0.4])
def test_the_gradients_by_hand_are_those_of_the_formulas(softness: float) -> None:
    """What the class says, in autograd's own terms: exact inside the ramp, surrogates where it saturates."""
    torch.manual_seed(0)
    length, sizes = 24, torch.tensor([3.0, 4.0, 9.0, 2.0])
    distance = (torch.arange(length)[:, None] - torch.arange(length))[None, None]
    allowed, sinks = distance >= 0, (torch.arange(length) < 1) & (distance >= 0)
    scores, rho = torch.randn(2, 4, length, length), torch.rand(2, 4, length, length) * 2 - 1
    pull = torch.randn_like(scores)

    def gradients(by_hand: bool) -> list[torch.Tensor]:
        made = module(4, threshold=torch.tensor([0.1, 0.2, -1.9, 0.8]), softness=softness, log2_window=sizes)
        z, r = scores.clone().requires_grad_(), rho.clone().requires_grad_()
        weights = z.masked_fill(~allowed, -1e30).softmax(-1)
        if by_hand:
            out = renormalised(weights, made.acceptance(r, distance, sinks) * allowed, False)
        else:
            out = formula(made, weights, r)
        (out * pull).sum().backward()
        return [value.grad for value in (z, r, *made.parameters()) if value.grad is not None]

    def formula(made: Screening, weights: torch.Tensor, r: torch.Tensor) -> torch.Tensor:
        t, tau, w = (value.view(-1, 1, 1) for value in (made.threshold, made.softness, made.log2_window))
        ramp = ((r - t) / tau.clamp(min=1e-7)).clamp(0, 1)
        soft = torch.sigmoid((r.detach() - t - tau / 2) / (tau.detach().clamp(min=0.1) / 4))
        saturated = (ramp == 0) | (ramp == 1) | (tau < 1e-3)
        alpha = torch.where(saturated, (ramp**2).detach() + soft - soft.detach(), ramp**2)
        octaves = w - (distance.clamp(min=0) + 1).log2()
        edge = torch.sigmoid(4 * octaves) * (octaves.abs() < 1)
        alpha = alpha * ((distance < made.windows().view(-1, 1, 1)) + edge - edge.detach())
        alpha = alpha.masked_fill(sinks, 1.0) * allowed
        with torch.no_grad():
            held = ((weights * alpha).sum(-1, keepdim=True) / weights.clamp(min=1e-30)).clamp(max=1)
            held = torch.where(alpha == 0, held, 1.0)
        alpha = alpha.detach() + held * (alpha - alpha.detach())
        return weights * alpha / (weights * alpha).sum(-1, keepdim=True)

    own, expected = gradients(True), gradients(False)
    assert len(own) == len(expected) == 5
    for ours, theirs in zip(own, expected, strict=True):
        assert ours.shape == theirs.shape and torch.allclose(ours, theirs, rtol=1e-3, atol=1e-4)
