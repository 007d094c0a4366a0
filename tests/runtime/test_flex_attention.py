"""Screening as a score modification of FlexAttention: equal to the mask, skipping what windows leave out.

In short without torch.compile, which goes over all pairs but says the same; compiled (slow: up to a minute for each
kernel, and a C++ compiler is needed) through whole models.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from transformers.integrations import flex_attention as integration
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.models.gemma2.modeling_gemma2 import eager_attention_forward

from surgery.conversion import convert
from surgery.loading import operation_modules
from surgery.loading.caches import new_cache, with_cache
from surgery.operations.screening.modeling import Screening, block_masks
from surgery.operations.screening.modeling import flex as screened_flex
from surgery.operations.ssmax.modeling import SSMax
from surgery.runtime import VISIBLE_KEYS, operated_attention
from surgery.verification.presentations import randomized
from tests.runtime.test_family_matrix import BOUND, load, tokens
from tests.runtime.test_screening_matrix import screened
from tests.runtime.test_windowed_cache import rows

GROUPS, EACH, SIZE = 2, 3, 8
HEADS = GROUPS * EACH
compiled = [
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU"),
]


def layer(**values: Any) -> Any:
    """An attention module with screening: thresholds that bite, a head that rejects all, windows of all kinds."""
    module: Any = torch.nn.Module().eval()
    module.num_key_value_groups, module.is_causal = EACH, True
    start = {"threshold": -3.0, "softness": 0.05, "log2_window": 20.0}
    module.screening = Screening({"form": "gated", "sinks": 2, "full_window": 1024, "start": start}, HEADS)
    settings = {
        "threshold": torch.tensor([-3.0, 0.1, 0.3, -0.2, 1.5, 0.0]),
        "softness": torch.tensor([0.1, 0.0, 0.2, 0.3, 0.1, 0.5]),
        "log2_window": torch.tensor([5.0, 9.0, 1024.0, 30.0, 3.0, 100.0]).log2(),
    }
    with torch.no_grad():
        for name, value in {**settings, **values}.items():
            getattr(module.screening, name).copy_(value)
    return module


def attend(
    name: str, module: Any, queries: int, keys: int, allowed: torch.Tensor, n: torch.Tensor, **kwargs: Any
) -> Any:
    """The output of a backend for random queries and keys with the mask ``allowed`` ``(batch, queries, keys)``."""
    generator = torch.Generator().manual_seed(0)
    batch = len(allowed)
    query = torch.randn(batch, HEADS, queries, SIZE, generator=generator)
    key, value = (torch.randn(batch, GROUPS, keys, SIZE, generator=generator) for _ in range(2))
    if name == "flex_attention":
        mask: Any = create_block_mask(lambda b, h, i, j: allowed[b, i, j], batch, None, queries, keys, device="cpu")
    else:
        mask = allowed[:, None]
    eager = eager_attention_forward
    backend = sdpa_attention_forward if name == "sdpa" else eager
    with torch.no_grad():
        given = (query, key, value, mask)
        return operated_attention(
            name, backend, eager if name == "eager" else None, module, *given, **{VISIBLE_KEYS: n}, **kwargs
        )[0]


@pytest.fixture
def _uncompiled(monkeypatch: Any) -> None:
    use_uncompiled(monkeypatch)


def use_uncompiled(monkeypatch: Any) -> None:
    """FlexAttention over all pairs, without a compiler and without tracing."""
    monkeypatch.setattr("torch.nn.attention.flex_attention._FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)
    monkeypatch.setattr(screened_flex, "_flex_on_a_cpu", flex_attention)

    def uncompiled_mask(*given: Any, _compile: bool, **more: Any) -> Any:
        return create_block_mask(*given, **more)

    monkeypatch.setattr("transformers.masking_utils.create_block_mask", uncompiled_mask)
    monkeypatch.setattr(
        integration,
        "compile_friendly_flex_attention",
        lambda *given, training, **more: flex_attention(*given, **more),  # noqa: PLW0108
    )


def causal(queries: int, keys: int, padding: tuple[int, ...] = (0,)) -> tuple[torch.Tensor, torch.Tensor]:
    """Allowed keys and n, for rows with the given numbers of padding keys on the left."""
    place = torch.arange(keys) - torch.tensor(padding)[:, None]
    allowed = (place[:, None] >= 0) & (torch.arange(keys) <= torch.arange(keys - queries, keys)[:, None])
    return allowed, (place[:, -queries:] + 1).clamp(min=1).float()


def packed(length: int, lengths: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    document = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    allowed = (document[:, None] == document) & torch.ones(length, length, dtype=torch.bool).tril()
    return allowed[None], allowed.sum(-1)[None].float()


CASES: dict[str, Any] = {
    "causal": (150, 150, causal(150, 150)),
    "three blocks": (300, 300, causal(300, 300)),
    "left-padded rows": (40, 40, causal(40, 40, (0, 7))),
    "packed": (40, 40, packed(40, (11, 29))),
    "one query after a cache": (1, 140, causal(1, 140, (0, 9))),
    "a chunk after a cache": (9, 60, causal(9, 60, (5,))),
}


@pytest.mark.usefixtures("_uncompiled")
@pytest.mark.parametrize("case", CASES)
def test_it_is_the_mask(case: str) -> None:
    queries, keys, (allowed, n) = CASES[case]
    module = layer()
    expected = attend("sdpa", module, queries, keys, allowed, n)
    assert module.screening.path == "sdpa"
    found = attend("flex_attention", module, queries, keys, allowed, n)
    assert module.screening.path == "flex_attention"
    assert (found - expected).abs().max() < 1e-5


@pytest.mark.usefixtures("_uncompiled")
@pytest.mark.parametrize("softcap", [None, 2.0])
def test_windows_alone_need_no_relevance(softcap: float | None, monkeypatch: Any) -> None:
    monkeypatch.setattr(screened_flex, "_scores", None)
    module = layer(threshold=torch.tensor(-3.0))
    queries, keys, (allowed, n) = CASES["left-padded rows"]
    name, given = "sdpa" if softcap is None else "eager", {"softcap": softcap, "scaling": SIZE**-0.5}
    expected, found = (attend(one, module, queries, keys, allowed, n, **given) for one in (name, "flex_attention"))
    real = allowed.any(-1)  # padding sees no key, and its output is nobody's
    assert (found - expected)[real].abs().max() < 1e-5


@pytest.mark.usefixtures("_uncompiled")
def test_where_everything_is_rejected_it_gives_zero() -> None:
    module = layer()
    module.screening.sinks = 0
    allowed, n = causal(40, 40)
    expected, found = (attend(name, module, 40, 40, allowed, n) for name in ("sdpa", "flex_attention"))
    assert torch.equal(found[:, :, 4], torch.zeros_like(found[:, :, 4]))
    assert (found - expected).abs().max() < 1e-5


@pytest.mark.usefixtures("_uncompiled")
def test_ssmax_and_a_soft_cap() -> None:
    """The paper's multiplier is 0 at n = 1: the relevance must not come from the multiplied query."""
    module = layer()
    module.ssmax = SSMax({"form": "paper", "reference_length": 64, "start": {"scale": 0.4}}, HEADS)
    allowed, n = causal(40, 40)
    expected = attend("sdpa", module, 40, 40, allowed, n)
    assert (attend("flex_attention", module, 40, 40, allowed, n) - expected).abs().max() < 1e-5
    capped = attend("flex_attention", module, 40, 40, allowed, n, softcap=0.7)
    assert (capped - expected).abs().max() > 1e-2
    scale = SIZE**-0.5
    dense = attend("eager", module, 40, 40, allowed, n, softcap=0.7, scaling=scale)
    assert (capped - dense).abs().max() < 1e-5


@pytest.mark.parametrize("padding", [(0,), (0, 300)])
def test_blocks_outside_every_window_are_left_out(padding: tuple[int, ...]) -> None:
    allowed, n = causal(1024, 1024, padding)
    given = create_block_mask(lambda b, h, i, j: allowed[b, i, j], len(padding), None, 1024, 1024, device="cpu")
    windows = torch.tensor([100.0, torch.inf, 129.0, 130.0])
    places = (n - 1).expand(len(padding), -1)
    found = block_masks.within_windows(given, places, places, windows, 2, (1024, 1024)).to_dense().bool()
    distance = places[:, :, None] - places[:, None]
    first = (places < 2)[:, None]
    near = (distance[:, None] < windows[:, None, None]) | first[:, None]
    needed = (near & allowed[:, None]).view(len(padding), 4, 8, 128, 8, 128).any(-1).any(3)
    assert (found | ~needed).all(), "a block that holds a key inside the window is there"
    assert torch.equal(found, needed), "and no other"


@pytest.mark.parametrize(
    ("given", "match"),
    [({"s_aux": torch.zeros(HEADS)}, "with s_aux"), ({"position_bias": torch.zeros(1)}, "with position_bias")],
)
def test_what_it_cannot_do_is_an_error(given: dict[str, Any], match: str) -> None:
    allowed, n = causal(8, 8)
    with pytest.raises(ValueError, match=match):
        attend("flex_attention", layer(), 8, 8, allowed, n, **given)


@pytest.mark.parametrize("case", [pytest.param(case, marks=compiled) for case in CASES])
def test_compiled_it_is_the_mask(case: str) -> None:
    queries, keys, (allowed, n) = CASES[case]
    expected, found = (attend(name, layer(), queries, keys, allowed, n) for name in ("sdpa", "flex_attention"))
    assert (found - expected).abs().max() < 1e-5


@pytest.mark.parametrize("family", [pytest.param(family, marks=compiled) for family in ("gemma2", "llama")])
def test_a_compiled_model(make_source: Any, tmp_path: Path, family: str) -> None:
    model = load(screened(make_source(family), tmp_path / "out", sinks=2))
    modules: dict[str, Any] = operation_modules(model)
    with torch.no_grad():
        for module in modules.values():
            module.threshold.copy_(torch.tensor([-0.3, 0.1, -3.0, 0.2]))
            module.softness.copy_(torch.tensor([0.1, 0.0, 0.3, 0.2]))
            module.log2_window.copy_(torch.tensor([9.0, 64.0, 5.0, 12.0]).log2())
    ids, mask = rows((0, 0), (7, 0))
    given = {"attention_mask": mask, "position_ids": (mask.cumsum(-1) - 1).clamp(min=0)}
    with torch.no_grad():
        plain, padded = model(input_ids=tokens(40)).logits, model(input_ids=ids, **given).logits
        generated = model.generate(tokens(20), max_new_tokens=6, do_sample=False)
        model.set_attn_implementation("flex_attention")
        assert (model(input_ids=tokens(40)).logits - plain).abs().max() < BOUND
        assert {module.path for module in modules.values()} == {"flex_attention"}
        assert (model(input_ids=ids, **given).logits - padded)[mask.bool()].abs().max() < BOUND
        assert torch.equal(model.generate(tokens(20), max_new_tokens=6, do_sample=False), generated)


@pytest.mark.parametrize(
    "pieces", [(3, 11, 16), *(pytest.param(pieces, marks=pytest.mark.slow) for pieces in ((30,), (10, 20)))]
)
def test_a_model_with_chunks(
    make_source: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pieces: tuple[int, ...]
) -> None:
    """A prompt in several pieces, whose queries lie in other chunks than some keys of the cache.

    Not compiled: the code that torch 2.13 makes of masks with chunks for a CPU is no C++.
    """
    use_uncompiled(monkeypatch)
    source = make_source("llama4_text")
    model = load(convert(source, "screening", layers="chunked", open=True, output=tmp_path / "out").output)
    modules: dict[str, Any] = operation_modules(model)
    ids = tokens(sum(pieces))
    with randomized(model), torch.no_grad():
        expected = model(input_ids=ids).logits
        model.set_attn_implementation("flex_attention")
        cache, found, begin = new_cache(model), [], 0
        for length in pieces:
            found.append(model(input_ids=ids[:, begin : begin + length], **with_cache(cache)).logits)
            begin += length
    assert {module.path for module in modules.values()} == {"flex_attention"}
    assert (torch.cat(found, dim=1) - expected).abs().max() < BOUND


@pytest.mark.parametrize("_", [pytest.param(None, marks=compiled)])
def test_compiled_it_never_touches_what_lies_outside_every_window(_: None) -> None:
    module = layer(log2_window=torch.tensor(100.0).log2())
    _, n = causal(1024, 1024)
    backend = sdpa_attention_forward
    query = torch.randn(1, HEADS, 1024, SIZE)
    key, value = (torch.randn(1, GROUPS, 1024, SIZE) for _ in range(2))
    mask = create_block_mask(lambda b, h, i, j: i >= j, 1, None, 1024, 1024, device="cpu")

    def last() -> torch.Tensor:
        with torch.no_grad():
            given = {VISIBLE_KEYS: n}
            found = operated_attention("flex_attention", backend, None, module, query, key, value, mask, **given)[0]
        return found[:, -128:]

    before = last()
    key[:, :, 128:768] = value[:, :, 128:768] = torch.nan
    assert torch.equal(last(), before)
    value[:, :, 768:] = torch.nan
    assert torch.isnan(last()).any()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: FlexAttention's other kernels")
def test_on_a_gpu() -> None:
    module, (allowed, n) = layer().cuda(), causal(300, 300)
    query = torch.randn(1, HEADS, 300, 64, device="cuda")
    key, value = (torch.randn(1, GROUPS, 300, 64, device="cuda") for _ in range(2))
    backend = sdpa_attention_forward
    mask = create_block_mask(lambda b, h, i, j: i >= j, 1, None, 300, 300, device="cuda")
    with torch.no_grad():
        found, expected = (
            operated_attention(name, backend, None, module, query, key, value, given, **{VISIBLE_KEYS: n.cuda()})[0]
            for name, given in (("flex_attention", mask), ("sdpa", allowed[:, None].cuda()))
        )
    assert (found - expected).abs().max() < 1e-2  # products in TF32
