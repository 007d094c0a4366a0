"""The screening unit in place of attention: against its definition, the bridge from softmax, refusals."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

from surgery.anatomy import FAMILIES
from surgery.conversion import convert
from surgery.errors import PlanRefusedError
from surgery.loading import operation_modules, operations_off
from surgery.loading.caches import with_cache
from surgery.operations import OPERATIONS
from surgery.operations.screening.modeling import Screening, WindowedCache
from surgery.verification.behaviour import rounding_error
from surgery.verification.presentations import presentation_differences, randomized
from tests.families import VOCABULARY, WINDOW, families_for_the_matrix
from tests.runtime.test_family_matrix import BOUND, load, logits, tokens

FULL = 64
VALUES = {
    "threshold": torch.tensor([-0.3, -0.1, 0.1, 0.2]),
    "softness": torch.tensor([0.1, 0.3, 0.0, 0.2]),
    "log2_window": torch.tensor([9.0, 80.0, 30.0, 12.0]).log2(),
    "log2_gain": torch.tensor([-1.0, -2.0, 0.5, 0.0]),
    "log2_bound": torch.tensor([0.0, 1.0, -1.0, 2.0]),
}


def module(heads: int = 1, renormalisation: float = 0.0, sinks: int = 0, **values: float) -> Screening:
    start = {"threshold": 0.0, "softness": 0.2, "log2_window": 10.0, "log2_gain": 0.0, "log2_bound": 0.0}
    options = {"form": "unit", "sinks": sinks, "full_window": 1024, "renormalisation": renormalisation}
    return Screening({**options, "start": {**start, **values}}, heads)


def accept(made: Screening, rho: torch.Tensor, sinks: int = 0) -> torch.Tensor:
    """alpha of a row of keys ``(keys,)``; the last key is the query's own."""
    distance = torch.arange(len(rho) - 1, -1, -1)[None, None, None]
    first = (torch.arange(len(rho)) < sinks)[None, None, None]
    return made.acceptance(rho[None, None, None], distance, first)[0, 0, 0]


def unit(source: Path, out: Path, **options: Any) -> Path:
    given = {"form": "unit", "open": True, "renormalisation": 0.0, "layers": "all", "output": out, **options}
    if reason := OPERATIONS["screening"].family_refusal(FAMILIES[source.name.removeprefix("tiny-")]):
        with pytest.raises(PlanRefusedError, match=reason):
            convert(source, "screening", **given)
        pytest.skip(reason)
    return convert(source, "screening", **given).output


def set_values(model: Any, renormalisation: float | None = None, **values: Any) -> dict[str, Any]:
    modules: dict[str, Any] = operation_modules(model)
    with torch.no_grad():
        for made in modules.values():
            for name, value in {**VALUES, **values}.items():
                if hasattr(made, name):
                    getattr(made, name).copy_(torch.as_tensor(value))
            if renormalisation is not None:
                made.renormalisation.fill_(renormalisation)
    return modules


# --------------------------------------------------------------------------------------------- the module by itself


def test_trim_and_square_ends_at_a_cosine_of_one() -> None:
    alpha = accept(module(threshold=0.5), torch.tensor([-1.0, 0.4, 0.5, 0.75, 1.0]))
    assert torch.allclose(alpha, torch.tensor([0.0, 0.0, 0.0, 0.25, 1.0]), atol=1e-6)


def test_the_distance_softmask_falls_to_zero_at_the_window() -> None:
    alpha = accept(module(threshold=0.0, log2_window=2.0), torch.ones(6))
    expected = [0, 0] + [(1 + math.cos(math.pi * distance / 4)) / 2 for distance in (3, 2, 1, 0)]
    assert torch.allclose(alpha, torch.tensor(expected), atol=1e-6)
    assert torch.allclose(accept(module(log2_window=10.0), torch.ones(6)), torch.ones(6)), (
        "a full window bounds nothing"
    )


def test_the_window_has_the_cosines_gradient() -> None:
    made = module(log2_window=3.0)
    accept(made, torch.ones(6)).sum().backward()
    by_hand = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    ((1 + (math.pi * torch.arange(6) / by_hand.exp2()).cos()) / 2).sum().backward()
    assert made.log2_window.grad is not None and by_hand.grad is not None
    assert made.log2_window.grad.item() == pytest.approx(by_hand.grad.item(), rel=1e-4)
    full = module(log2_window=10.5)
    accept(full, torch.ones(6)).sum().backward()
    assert full.log2_window.grad is not None and full.log2_window.grad.item() > 0, "a full window can learn to shrink"


def test_gradients_reach_a_threshold_that_just_rejects() -> None:
    made = module(threshold=0.3)
    alpha = accept(made, torch.tensor([0.29]))
    assert alpha.item() == 0.0
    alpha.sum().backward()
    assert made.threshold.grad is not None and made.threshold.grad.item() < -0.1


def test_inside_the_ramp_the_gradient_is_exact() -> None:
    made = module(threshold=0.3)
    accept(made, torch.tensor([0.6])).sum().backward()
    ramp = 0.3 / 0.7
    assert made.threshold.grad is not None
    assert made.threshold.grad.item() == pytest.approx(2 * ramp * (0.6 - 1) / 0.7**2, rel=1e-4)
    assert made.softness.grad is None or made.softness.grad.item() == 0.0, "the ramp of a unit ends at one"


def test_nothing_survives_gives_zero_and_finite_gradients() -> None:
    made = module(threshold=0.9)
    query = torch.tensor([[[[1.0, 0.0]]]], requires_grad=True)
    key = torch.tensor([[[[0.0, 1.0], [-1.0, 0.2]]]], requires_grad=True)
    value = torch.tensor([[[[3.0, 1.0], [2.0, -1.0]]]], requires_grad=True)
    none = torch.zeros(1, 1, 1, 2, dtype=torch.bool)
    accepted = made.acceptance(made.relevance(query, key), torch.tensor([[[[1, 0]]]]), none)
    out = made.finish(made.weigh(accepted, None, False) @ value)
    assert torch.equal(out, torch.zeros_like(out))
    (out * torch.tensor([1.0, 2.0])).sum().backward()
    for tensor in (query, key, value, *(p for p in made.parameters() if p.requires_grad)):
        assert tensor.grad is None or torch.isfinite(tensor.grad).all()
    assert made.threshold.grad is not None and made.threshold.grad.abs().item() > 0, "it can learn to accept again"


def test_gain_and_bound() -> None:
    summed = torch.tensor([[[[0.003, 0.004], [30.0, 40.0]]]])
    out = module(log2_gain=1.0, log2_bound=1.0).finish(summed)
    assert torch.allclose(out[0, 0, 0], 2 * summed[0, 0, 0], rtol=1e-4), "small outputs are as they are, times the gain"
    assert torch.allclose(out[0, 0, 1], torch.tensor([1.2, 1.6])), "great ones have the length of the bound"


def test_the_exponent_is_never_learned() -> None:
    made = module(renormalisation=0.5)
    assert not made.renormalisation.requires_grad
    made.renormalisation.requires_grad_(True)  # as PEFT does with all that it saves
    weights = torch.tensor([[[[0.3, 0.7]]]])
    accepted = accept(made, torch.tensor([0.4, 0.6]))[None, None, None]
    made.finish(made.weigh(accepted, weights, False) @ torch.ones(2, 2)).sum().backward()
    assert made.renormalisation.grad is None and made.threshold.grad is not None


# -------------------------------------------------------------------------------------------------------- the bridge


def test_at_one_it_is_gated_and_at_zero_the_unit(make_source: Any, tmp_path: Path) -> None:
    """Exactly at both ends, and near them nearly: nothing jumps on the way."""
    source = make_source("llama")
    gated = load(convert(source, "screening", open=True, layers="all", output=tmp_path / "gated").output)
    bridge = load(unit(source, tmp_path / "bridge", renormalisation=1.0))
    with torch.no_grad():
        set_values(gated)
    answers = {}
    for exponent in (1.0, 1 - 1e-5, 0.7, 0.5, 0.3, 1e-5, 0.0):
        modules = set_values(bridge, exponent)
        answers[exponent] = logits(bridge, tokens())
        path = {1.0: "sdpa in bands", 0.0: "bands, unit"}.get(exponent, "reference, between gated and unit")
        assert {made.path for made in modules.values()} == {path}
    assert torch.equal(answers[1.0], logits(gated, tokens()))
    scale = (answers[1.0] - answers[0.0]).abs().max()
    assert scale > 0.1, "the ends must differ"
    for end, near in ((1.0, 1 - 1e-5), (0.0, 1e-5)):
        assert (answers[end] - answers[near]).abs().max() < 0.01 * scale
    steps = [(answers[a] - answers[b]).abs().max() for a, b in ((1.0, 0.7), (0.7, 0.5), (0.5, 0.3), (0.3, 0.0))]
    assert all(0 < step < scale for step in steps)


def test_first_keys_lose_their_privilege_on_the_way() -> None:
    rho = torch.tensor([-0.9, 0.5])
    for exponent in (1.0, 0.999, 0.4, 0.0):
        alpha = accept(module(renormalisation=exponent, threshold=0.0, softness=0.5), rho, sinks=1)
        assert alpha[0].item() == pytest.approx(exponent, abs=1e-6)


def test_open_at_one_is_exactly_the_source(make_source: Any, tmp_path: Path) -> None:
    source = load(make_source("llama"))
    operated = load(unit(make_source("llama"), tmp_path / "out", renormalisation=None))
    modules: dict[str, Any] = operation_modules(operated)
    assert torch.equal(logits(operated, tokens()), logits(source, tokens()))
    assert {made.path for made in modules.values()} == {"open"}


def test_heads_that_are_not_chosen_keep_their_softmax(make_source: Any, tmp_path: Path) -> None:
    source = make_source("llama")
    operated = load(unit(source, tmp_path / "out", heads="0-1"))
    modules = set_values(
        operated, log2_gain=torch.full((2,), -60.0), **{n: v[:2] for n, v in VALUES.items() if n != "log2_gain"}
    )
    stock = load(source)
    with torch.no_grad():
        for layer in stock.model.layers:  # without the first two heads
            size = layer.self_attn.head_dim
            layer.self_attn.o_proj.weight[:, : 2 * size] = 0
    assert (logits(operated, tokens()) - logits(stock, tokens())).abs().max() < 1e-5
    assert {made.path for made in modules.values()} == {"reference, between gated and unit"}


# --------------------------------------------------------------------------------------------------------- in models


@pytest.mark.usefixtures("_oracle")
def test_other_attention_implementations_are_refused(make_source: Any, tmp_path: Path) -> None:
    model = load(unit(make_source("llama"), tmp_path / "out"))
    model.set_attn_implementation("unit_oracle")
    with pytest.raises(ValueError, match="form unit does not run with the attention implementation 'unit_oracle'"):
        logits(model, tokens())
    with operations_off(model):
        model.set_attn_implementation("sdpa")
        assert torch.equal(logits(model, tokens()), logits(load(make_source("llama")), tokens()))


def test_a_windowed_cache_answers_the_same(make_source: Any, tmp_path: Path) -> None:
    model = load(unit(make_source("llama"), tmp_path / "out"))
    set_values(model, log2_window=torch.tensor([9.0, 6.0, 5.0, 64.0]).log2())
    for exponent in (0.0, 0.5):
        modules = set_values(model, exponent, log2_window=torch.tensor([9.0, 6.0, 5.0, 64.0]).log2())
        plain = logits(model, tokens(40))
        cache, found = WindowedCache(model), []
        with torch.no_grad():
            for piece in tokens(40).split((20, 1, 1, 12, 1, 5), 1):
                found.append(model(input_ids=piece, **with_cache(cache)).logits)
        assert (torch.cat(found, 1) - plain).abs().max() < BOUND
        assert all(made.path.endswith("with kept keys") for made in modules.values())


def test_presentations_agree(make_source: Any, tmp_path: Path) -> None:
    check_presentations("llama", make_source, tmp_path, 0.4)


def check_presentations(family: str, make_source: Any, tmp_path: Path, exponent: float) -> None:
    model = load(unit(make_source(family), tmp_path / "out", renormalisation=exponent))
    start = logits(model, tokens())
    with randomized(model):
        assert (logits(model, tokens()) - start).abs().max() > 1e-2, "the random parameters must matter"
        differences = presentation_differences(model, tokens())
    found = {name: value for name, value in differences.items() if not value <= BOUND}
    assert {name: value for name, value in found.items() if name not in FAMILIES[family].breaks} == {}


def oracle(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: Any, **kwargs: Any
) -> tuple[torch.Tensor, None]:
    """Row by row from the paper's equations; gain and bound as this package has them."""
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    allowed = attention_mask > torch.finfo(attention_mask.dtype).min / 2
    out = torch.zeros(*query.shape[:3], value.shape[-1])
    for row in range(query.shape[0]):
        for head in range(query.shape[1]):
            r = 1 - VALUES["threshold"][head]
            window, bound = 2 ** VALUES["log2_window"][head], 2 ** VALUES["log2_bound"][head]
            for i in range(query.shape[2]):
                seen = allowed[row, 0, i].nonzero().flatten()
                if not len(seen):
                    continue
                s = torch.cosine_similarity(query[row, head, i : i + 1], key[row, head, seen], dim=-1)
                alpha = (1 - (1 - s) / r).clamp(min=0) ** 2
                if window < FULL:
                    far = i - seen
                    alpha = alpha * torch.where(far < window, (1 + (math.pi * far / window).cos()) / 2, 0.0)
                h = 2 ** VALUES["log2_gain"][head] * alpha @ value[row, head, seen] / bound
                out[row, head, i] = bound * torch.tanh(h.norm()) * h / h.norm().clamp(min=1e-20)
    return out.transpose(1, 2).contiguous(), None


@pytest.fixture
def _oracle() -> Any:
    AttentionInterface.register("unit_oracle", oracle)
    AttentionMaskInterface.register("unit_oracle", eager_mask)
    yield
    del AttentionInterface._global_mapping["unit_oracle"]
    del AttentionMaskInterface._global_mapping["unit_oracle"]


@pytest.mark.usefixtures("_oracle")
def test_the_model_computes_the_unit(make_source: Any, tmp_path: Path) -> None:
    check_against_oracle("llama", make_source, tmp_path)


def check_against_oracle(family: str, make_source: Any, tmp_path: Path) -> None:
    operated = load(unit(make_source(family), tmp_path / "out", full_window=FULL))
    stock = load(make_source(family), attn_implementation="unit_oracle")
    set_values(operated)
    ids = torch.randint(3, VOCABULARY, (2, 2 * WINDOW), generator=torch.Generator().manual_seed(5))
    mask = torch.ones_like(ids)
    mask[1, :9] = 0  # one row is left-padded
    with torch.no_grad():
        expected = stock(input_ids=ids, attention_mask=mask).logits[mask.bool()]
        found = operated(input_ids=ids, attention_mask=mask).logits[mask.bool()]
    # Differential attention takes one sum from another and normalises what is left: rounding grows with it.
    bound = 2 * rounding_error(operated, ids[:1]) if family == "diffllama" else 0.0
    assert (expected - found).abs().max() < max(2e-4, bound)


def test_a_training_step_moves_every_parameter_and_survives_saving(make_source: Any, tmp_path: Path) -> None:
    check_training("llama", make_source, tmp_path)


def check_training(family: str, make_source: Any, tmp_path: Path) -> None:
    model = load(unit(make_source(family), tmp_path / "out")).train()
    set_values(model)
    learned = {name: p for name, p in model.named_parameters() if ".screening." in name}
    before = {name: p.detach().clone() for name, p in learned.items()}
    model(input_ids=tokens(), labels=tokens()).loss.backward()
    for name, p in learned.items():
        if name.endswith(("renormalisation", "softness")):
            assert p.grad is None or not p.grad.any(), name
            continue
        assert p.grad is not None and torch.isfinite(p.grad).all() and p.grad.any(), name
    torch.optim.SGD(list(learned.values()), lr=1.0).step()
    assert any(not torch.equal(p, before[name]) for name, p in learned.items())
    model.eval().save_pretrained(tmp_path / "saved")
    again = load(tmp_path / "saved")
    assert torch.equal(logits(again, tokens()), logits(model, tokens()))


# ----------------------------------------------------------------------------------------------------- every family


@pytest.mark.slow
@pytest.mark.parametrize("exponent", [0.0, 0.4])
@pytest.mark.parametrize("family", families_for_the_matrix())
def test_presentations_of_every_family(make_source: Any, tmp_path: Path, family: str, exponent: float) -> None:
    check_presentations(family, make_source, tmp_path, exponent)


@pytest.mark.slow
@pytest.mark.usefixtures("_oracle")
@pytest.mark.parametrize("family", families_for_the_matrix())
def test_every_family_computes_the_unit(make_source: Any, tmp_path: Path, family: str) -> None:
    check_against_oracle(family, make_source, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("family", families_for_the_matrix())
def test_every_family_trains(make_source: Any, tmp_path: Path, family: str) -> None:
    check_training(family, make_source, tmp_path)
