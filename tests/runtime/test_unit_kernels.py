"""Screening units through softmax kernels and in bands: equal to the reference, without keys outside the windows.

FlexAttention in short without torch.compile, as in test_flex_attention.py; compiled tests are slow.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.models.gemma2.modeling_gemma2 import eager_attention_forward

from surgery.loading.caches import new_cache, with_cache
from surgery.operations.screening.modeling import Screening, acceptance, block_masks
from surgery.operations.screening.modeling import flex as screened_flex
from surgery.runtime import VISIBLE_KEYS, operated_attention
from tests.runtime.test_family_matrix import BOUND, load, tokens
from tests.runtime.test_flex_attention import CASES, EACH, GROUPS, HEADS, SIZE, attend, causal, compiled, use_uncompiled
from tests.runtime.test_flex_attention import layer as gated_layer
from tests.runtime.test_unit import set_values, unit
from tests.runtime.test_windowed_cache import rows

SCALE = SIZE**-0.5
SETTINGS = {
    "threshold": [-3.0, 0.1, 0.3, -0.2, 1.5, 0.0],
    "softness": [0.1, 0.0, 0.2, 0.3, 0.1, 0.5],
    "log2_window": [5.0, 9.0, 1024.0, 30.0, 3.0, 100.0],
    "log2_gain": [-1.0, 0.0, 1.0, -0.5, 0.0, 0.3],
    "log2_bound": [1.0, 3.0, 0.0, 2.0, 1.0, 0.5],
}
# Of each head; a head at 1 has softmax. Between, a layer has both.
EXPONENTS = {"unit": [0.0] * HEADS, "some heads": [0.0, 1.0, 1.0, 0.0, 0.0, 1.0], "on the way": [0.4] * HEADS}


@pytest.fixture
def _uncompiled(monkeypatch: Any) -> None:
    use_uncompiled(monkeypatch)


@pytest.fixture(params=["extra key", "log-sum-exp"])
def _sums(request: Any, monkeypatch: Any) -> None:
    """Both ways to undo a softmax: that of CPUs and that of GPUs."""
    monkeypatch.setattr(screened_flex, "_has_log_sum_exp", lambda _: request.param == "log-sum-exp")


def layer(exponents: str = "unit", sinks: int = 2, **values: Any) -> Any:
    """An attention module with units: thresholds that bite, a head that rejects all, windows of all kinds."""
    module: Any = torch.nn.Module().eval()
    module.num_key_value_groups, module.is_causal = EACH, True
    start = dict.fromkeys(SETTINGS, 0.0)
    options = {"form": "unit", "sinks": sinks, "full_window": 1024, "start": start, "renormalisation": 0.0}
    module.screening = Screening(options, HEADS)
    settings = {name: torch.tensor(given) for name, given in SETTINGS.items()}
    settings["log2_window"] = settings["log2_window"].log2()
    with torch.no_grad():
        for name, value in {**settings, "renormalisation": torch.tensor(EXPONENTS[exponents]), **values}.items():
            getattr(module.screening, name).copy_(value)
    return module


# ------------------------------------------------------------------------------------------------------------- flex


@pytest.mark.parametrize("exponents", ["unit", "some heads"])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.usefixtures("_uncompiled", "_sums")
def test_flex_computes_the_unit(case: str, exponents: str) -> None:
    queries, keys, (allowed, n) = CASES[case]
    module = layer(exponents)
    expected, found = (
        attend(name, module, queries, keys, allowed, n, scaling=SCALE) for name in ("eager", "flex_attention")
    )
    assert module.screening.path == "flex_attention, unit"
    assert (found - expected).abs().max() < 1e-5
    if exponents == "unit":
        nothing = found[:, :, 4][:, n[0] > 3]  # this head's threshold is above one
        assert torch.equal(nothing, torch.zeros_like(nothing))


@pytest.mark.usefixtures("_uncompiled")
def test_on_the_way_it_is_the_reference() -> None:
    """A head with some softmax needs a sum over other scores too."""
    queries, keys, (allowed, n) = CASES["a chunk after a cache"]
    module = layer("on the way")
    query = torch.randn(1, HEADS, queries, SIZE)
    key, value = (torch.randn(1, GROUPS, keys, SIZE) for _ in range(2))
    mask = create_block_mask(lambda b, h, i, j: allowed[b, i, j], 1, None, queries, keys, device="cpu")
    eager, given = eager_attention_forward, {VISIBLE_KEYS: n, "scaling": SCALE}
    with torch.no_grad():
        found, expected = (
            operated_attention(name, backend, eager, module, query, key, value, one, **given)[0]
            for name, backend, one in (("flex_attention", flex_attention, mask), ("eager", eager, allowed[:, None]))
        )
    assert module.screening.path == "reference, between gated and unit"
    assert torch.equal(found, expected)


def sums(length: int, threshold: float, dtype: torch.dtype = torch.float32) -> tuple[Any, ...]:
    """A layer whose output is the sum itself; query, key and value that are almost parallel; n."""
    free = {"log2_gain": 0.0, "log2_bound": 40.0, "log2_window": 20.0}
    module = layer(threshold=torch.tensor(threshold), **{name: torch.tensor(value) for name, value in free.items()})
    generator = torch.Generator().manual_seed(1)
    query = (1 + torch.rand(1, HEADS, 1, SIZE, generator=generator)).to(dtype)
    key, value = ((1 + torch.rand(1, GROUPS, length, SIZE, generator=generator)).to(dtype) for _ in range(2))
    return module, query, key, value, torch.full((1, 1), float(length))


def summed_in_flex(module: Any, query: Any, key: Any, value: Any, n: Any) -> torch.Tensor:
    mask = create_block_mask(lambda b, h, i, j: j >= 0, 1, None, 1, key.shape[2], device="cpu")
    with torch.no_grad():
        given = (module, query, key, value, mask)
        return operated_attention("flex_attention", flex_attention, None, *given, **{VISIBLE_KEYS: n})[0]


def by_hand(threshold: float, query: Any, key: Any, value: Any) -> torch.Tensor:
    """sum alpha v in float64, ``(1, 1, heads, SIZE)``."""
    query, key, value = (one.double() for one in (query, key, value))
    key, value = (one.repeat_interleave(EACH, 1) for one in (key, value))
    rho = torch.cosine_similarity(query, key, dim=-1).unsqueeze(2)
    return ((((rho - threshold) / (1 - threshold)).clamp(min=0) ** 2) @ value).transpose(1, 2)


@pytest.mark.parametrize("threshold", [-3.0, 0.9999])
@pytest.mark.usefixtures("_uncompiled", "_sums")
def test_a_sum_of_thousands_and_a_tiny_one_are_exact(threshold: float) -> None:
    module, *tensors, n = sums(5000, threshold)
    expected, found = by_hand(threshold, *tensors), summed_in_flex(module, *tensors, n)
    size = expected.abs().amax(-1)
    if threshold < 0:
        assert size.min() > 4000
    # Where hardly anything passes the threshold, the relevance's own rounding is felt.
    allowance = 1e-5 if threshold < 0 else 20 * 6e-8 / (1 - threshold)
    assert ((found - expected).abs().amax(-1) <= allowance * size + 1e-6).all()


@pytest.mark.parametrize("length", [20, 3000])
@pytest.mark.usefixtures("_uncompiled", "_sums")
def test_bfloat16_loses_no_more_than_the_reference(length: int) -> None:
    module, *tensors, n = sums(length, 0.9, torch.bfloat16)
    exact = by_hand(0.9, *tensors)
    with torch.no_grad():
        eager = eager_attention_forward
        mask = torch.ones(1, 1, 1, length, dtype=torch.bool)
        dense = operated_attention("eager", eager, eager, module, *tensors, mask, **{VISIBLE_KEYS: n})[0]
    found = summed_in_flex(module, *tensors, n)
    assert found.dtype == torch.bfloat16
    by_flex, by_reference = (((one - exact).norm() / exact.norm()).item() for one in (found, dense))
    assert by_flex < max(2 * by_reference, 2**-8)


@pytest.mark.parametrize("padding", [(0,), (0, 300)])
def test_the_block_of_the_extra_key_is_kept_and_no_other(padding: tuple[int, ...]) -> None:
    allowed, n = causal(1024, 1024, padding)
    given = create_block_mask(lambda b, h, i, j: allowed[b, i, j], len(padding), None, 1024, 1024, device="cpu")
    windows = torch.tensor([100.0, torch.inf, 129.0])
    places = (n - 1).expand(len(padding), -1)
    made = block_masks.within_windows(given, places, places, windows, 0, (1024, 2048), extra_key=True)
    near = (places[:, :, None] - places[:, None])[:, None] < windows[:, None, None]
    needed = (near & allowed[:, None]).view(len(padding), 3, 8, 128, 8, 128).any(-1).any(3)
    found = made.to_dense().bool()
    assert torch.equal(found[..., :8], needed)
    assert found[..., 8].all() and not found[..., 9:].any()
    everything = torch.arange(1024), torch.arange(2048)
    seen = made.mask_mod(torch.tensor(0), torch.tensor(0), everything[0][:, None], everything[1])
    assert torch.equal(seen[:, :1024], allowed[0]) and seen[:, 1024].all() and not seen[:, 1025:].any()


# -------------------------------------------------------------------------------------------------------- gradients


@pytest.mark.parametrize("form", ["unit", "gated"])
@pytest.mark.parametrize("learned", [True, False])
def test_gradients_with_flex_are_those_of_the_reference(form: str, learned: bool) -> None:
    queries, keys, (allowed, n) = CASES["left-padded rows"]
    module = (layer() if form == "unit" else gated_layer()).requires_grad_(learned)
    mask = create_block_mask(lambda b, h, i, j: allowed[b, i, j], 2, None, queries, keys, device="cpu")
    found = []
    for name, backend, one in (
        ("flex_attention", flex_attention, mask),
        ("eager", eager_attention_forward, allowed[:, None]),
    ):
        generator = torch.Generator().manual_seed(2)
        shapes = ((2, heads, queries, SIZE) for heads in (HEADS, GROUPS, GROUPS))
        tensors = [torch.randn(shape, generator=generator, requires_grad=True) for shape in shapes]
        module.zero_grad()
        keywords = {VISIBLE_KEYS: n, "scaling": SCALE}
        output = operated_attention(name, backend, eager_attention_forward, module, *tensors, one, **keywords)[0]
        (output * torch.linspace(-1, 1, output.numel()).view_as(output)).sum().backward()
        gradients = [tensor.grad for tensor in (*tensors, *module.parameters()) if tensor.grad is not None]
        found.append([output, *gradients])
    assert len(found[0]) == (4 if not learned else 9 if form == "unit" else 7)
    assert all(one.abs().max() > 0 for one in found[0][1:4])
    for a, b in zip(*found, strict=True):
        assert torch.allclose(a, b, atol=1e-5)


GRADIENT_CASES = {**CASES, "whole": (300, 300, None), "one query": (1, 300, None)}


def with_gradients(name: str, module: Any, case: str, counting: bool = False) -> dict[str, torch.Tensor]:
    """The output, the counted keys, and the gradient of query, key, value and each learned number."""
    queries, keys, located = GRADIENT_CASES[case]
    allowed, n = causal(queries, keys) if located is None else located
    mask: Any = allowed[:, None]
    if name == "flex_attention":
        mask = create_block_mask(lambda b, h, i, j: allowed[b, i, j], len(allowed), None, queries, keys, device="cpu")
    elif located is None and name == "sdpa":
        mask = None
    generator = torch.Generator().manual_seed(2)
    shapes = (
        (len(allowed), heads, length, SIZE) for heads, length in ((HEADS, queries), (GROUPS, keys), (GROUPS, keys))
    )
    tensors = [torch.randn(shape, generator=generator, requires_grad=True) for shape in shapes]
    counted: list[tuple[torch.Tensor, int]] = []
    module.screening.counter = (lambda *given: counted.append(given)) if counting else None
    module.zero_grad()
    backend = {"eager": eager_attention_forward, "flex_attention": flex_attention}.get(name, sdpa_attention_forward)
    given = {VISIBLE_KEYS: n, "scaling": SCALE}
    output = operated_attention(name, backend, eager_attention_forward, module, *tensors, mask, **given)[0]
    loss = (output * torch.linspace(-1, 1, output.numel()).view_as(output)).sum()
    found = {"output": output.detach()}
    if counting:
        found["rejected"] = rejected = torch.stack([one for one, _ in counted]).sum(0)
        found["keys"] = torch.tensor(sum(number for _, number in counted))
        loss = loss + (rejected * torch.linspace(0.01, 0.03, HEADS)).sum()
    loss.backward()
    named = {**dict(zip(("query", "key", "value"), tensors, strict=True)), **dict(module.named_parameters())}
    return found | {f"of {name}": one.grad for name, one in named.items() if one.grad is not None}


@pytest.mark.parametrize("counting", [False, True])
@pytest.mark.parametrize("case", GRADIENT_CASES)
@pytest.mark.parametrize("windows", [SETTINGS["log2_window"], [9.0] * HEADS, [40.0] * EACH + [2000.0] * EACH])
def test_blocks_have_the_gradients_of_the_reference(
    windows: list[float], case: str, counting: bool, monkeypatch: Any
) -> None:
    # The gradient of the count samples queries of each block, and the reference has other blocks.
    monkeypatch.setattr(acceptance, "COUNTED_EVERY", 1)
    module = layer(log2_window=torch.tensor(windows).log2())
    expected, found = (with_gradients(name, module, case, counting) for name in ("eager", "sdpa"))
    assert module.screening.path == "blocks, unit"
    assert found.keys() == expected.keys() and len(found) == 9 + 2 * counting
    for name, one in expected.items():
        assert torch.allclose(found[name], one, atol=1e-5, rtol=1e-4), name


def test_gradients_never_touch_what_lies_outside_every_window() -> None:
    module = layer(log2_window=torch.tensor(32.0).log2())
    generator = torch.Generator().manual_seed(2)
    query, key, value = (torch.randn(1, heads, 600, SIZE, generator=generator) for heads in (HEADS, GROUPS, GROUPS))
    key[:, :, :400] = value[:, :, :400] = torch.nan
    query.requires_grad_()
    given = (module, query, key, value, None)
    n = torch.arange(1.0, 601.0)[None]
    output = operated_attention("sdpa", sdpa_attention_forward, eager_attention_forward, *given, **{VISIBLE_KEYS: n})[0]
    output[:, 500:].sum().backward()
    assert query.grad is not None and torch.isfinite(query.grad[:, :, 500:]).all()
    assert torch.isnan(output[:, 405]).any()


@pytest.mark.parametrize("learned", [True, False])
@pytest.mark.parametrize("form", ["unit", "gated"])
def test_no_matrix_of_queries_and_keys_is_kept_for_the_backward_pass(form: str, learned: bool) -> None:
    """Also where an adapter alone learns, and the numbers do not."""
    module = (layer() if form == "unit" else gated_layer()).requires_grad_(learned)
    kept = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.untyped_storage().nbytes())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        with_gradients("sdpa", module, "whole")
    largest = 300 * HEADS * SIZE * 4
    assert max(kept) <= largest, "nothing is larger than the queries"


@pytest.mark.usefixtures("_uncompiled", "_sums")
@pytest.mark.parametrize("form", ["unit", "windows"])
@pytest.mark.parametrize("case", ["left-padded rows", "a chunk after a cache"])
def test_flex_has_gradients_where_its_kernel_has_them(case: str, form: str, monkeypatch: Any) -> None:
    """As on a GPU: of the query, the keys and the values, where the layer's numbers do not learn."""
    monkeypatch.setattr(screened_flex, "_has_backward", lambda _: True)
    monkeypatch.setattr("torch.nn.attention.flex_attention._validate_device", lambda *_: None)  # none on a CPU
    module = (layer() if form == "unit" else gated_layer(threshold=torch.tensor(-3.0))).requires_grad_(False)
    expected, found = (with_gradients(name, module, case) for name in ("eager", "flex_attention"))
    assert module.screening.path == ("flex_attention, unit" if form == "unit" else "flex_attention")
    assert found.keys() == expected.keys() and len(found) == 4
    for name, one in expected.items():
        assert torch.allclose(found[name], one, atol=1e-5, rtol=1e-4), name


# ------------------------------------------------------------------------------------------------------------ bands


def in_bands(module: Any, length: int, queries: int | None = None, hidden: slice | None = None) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    query = torch.randn(2, HEADS, length, SIZE, generator=generator)
    key, value = (torch.randn(2, GROUPS, length, SIZE, generator=generator) for _ in range(2))
    if hidden is not None:
        key[:, :, hidden] = value[:, :, hidden] = torch.nan
    n = torch.arange(1.0, length + 1)[None]
    if queries is not None:
        query, n = query[:, :, -queries:], n[:, -queries:]
    with torch.no_grad():
        sdpa, eager = sdpa_attention_forward, eager_attention_forward
        return operated_attention("sdpa", sdpa, eager, module, query, key, value, None, **{VISIBLE_KEYS: n})[0]


@pytest.mark.parametrize(
    "windows", [SETTINGS["log2_window"], [9.0] * HEADS, [2000.0] * HEADS, [9.0, 9.0, 9.0, 40.0, 40.0, 40.0]]
)
@pytest.mark.parametrize("queries", [None, 1])
def test_bands_compute_the_unit(windows: list[float], queries: int | None) -> None:
    length = 300
    module = layer(log2_window=torch.tensor(windows).log2())
    found = in_bands(module, length, queries)
    assert module.screening.path == "bands, unit"
    module.requires_grad_(False)
    allowed = torch.ones(length, length, dtype=torch.bool).tril()[-(queries or length) :]
    generator = torch.Generator().manual_seed(3)
    query = torch.randn(2, HEADS, length, SIZE, generator=generator)[:, :, -(queries or length) :]
    key, value = (torch.randn(2, GROUPS, length, SIZE, generator=generator) for _ in range(2))
    n = allowed.sum(-1)[None].float()
    eager = eager_attention_forward
    expected = operated_attention(
        "eager", eager, eager, module, query, key, value, allowed[None, None], **{VISIBLE_KEYS: n}
    )
    assert (found - expected[0]).abs().max() < 1e-5
    assert torch.equal(found[:, :, 4], torch.zeros_like(found[:, :, 4])), "nothing passes this head's threshold"


def test_bands_never_touch_what_lies_outside_every_window() -> None:
    module = layer(log2_window=torch.tensor(32.0).log2())
    plain, hidden = (in_bands(module, 600, hidden=where) for where in (None, slice(0, 400)))
    assert torch.equal(plain[:, 500:], hidden[:, 500:]), "first keys are not kept either"
    assert torch.isnan(hidden[:, 405]).any()


# ----------------------------------------------------------------------------------------------------------- models


@pytest.mark.usefixtures("_uncompiled")
def test_presentations_of_a_model_in_flex(make_source: Any, tmp_path: Path) -> None:
    """Padded rows, a prompt in pieces with a cache, and generation."""
    model = load(unit(make_source("llama"), tmp_path / "out"))
    modules = set_values(model)
    ids, mask = rows((0, 0), (7, 0))
    given = {"attention_mask": mask, "position_ids": (mask.cumsum(-1) - 1).clamp(min=0)}
    with torch.no_grad():
        plain, padded = model(input_ids=tokens(40)).logits, model(input_ids=ids, **given).logits
        generated = model.generate(tokens(12), max_new_tokens=4, do_sample=False)
        model.set_attn_implementation("flex_attention")
        assert (model(input_ids=tokens(40)).logits - plain).abs().max() < BOUND
        assert {made.path for made in modules.values()} == {"flex_attention, unit"}
        assert (model(input_ids=ids, **given).logits - padded)[mask.bool()].abs().max() < BOUND
        assert torch.equal(model.generate(tokens(12), max_new_tokens=4, do_sample=False), generated)
        cache, found = new_cache(model), []
        for piece in tokens(40).split((20, 1, 19), 1):
            found.append(model(input_ids=piece, **with_cache(cache)).logits)
    assert (torch.cat(found, 1) - plain).abs().max() < BOUND


# --------------------------------------------------------------------------------------------------------- compiled


@pytest.mark.parametrize(
    ("case", "exponents"),
    [
        pytest.param(case, exponents, marks=compiled)
        for case, exponents in (
            ("causal", "unit"),
            ("left-padded rows", "some heads"),
            ("one query after a cache", "unit"),
        )
    ],
)
def test_compiled_flex_computes_the_unit(case: str, exponents: str) -> None:
    queries, keys, (allowed, n) = CASES[case]
    module = layer(exponents)
    expected, found = (
        attend(name, module, queries, keys, allowed, n, scaling=SCALE) for name in ("eager", "flex_attention")
    )
    assert (found - expected).abs().max() < 1e-5


@pytest.mark.parametrize("_", [pytest.param(None, marks=compiled)])
def test_compiled_flex_never_touches_what_lies_outside_every_window(_: None) -> None:
    module = layer(log2_window=torch.tensor(100.0).log2())
    n = torch.arange(1.0, 1025.0)[None]
    query = torch.randn(1, HEADS, 1024, SIZE)
    key, value = (torch.randn(1, GROUPS, 1024, SIZE) for _ in range(2))
    mask = create_block_mask(lambda b, h, i, j: i >= j, 1, None, 1024, 1024, device="cpu")

    def last() -> torch.Tensor:
        with torch.no_grad():
            given = (module, query, key, value, mask)
            found = operated_attention("flex_attention", sdpa_attention_forward, None, *given, **{VISIBLE_KEYS: n})[0]
        return found[:, -128:]

    before = last()
    key[:, :, :768] = value[:, :, :768] = torch.nan
    assert torch.equal(last(), before)
    value[:, :, 768:] = torch.nan
    assert torch.isnan(last()).any()
