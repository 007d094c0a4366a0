"""n where mask, cache or positions come from someone else: holes, prefixes, trees, thinned caches, strange positions.

The oracle is a dense attention inside the *stock* model. It counts n from the mask that each layer really gets and
computes n^(s z) / sum n^(s z) in float64. Nothing of the travelling code takes part in it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    AutoModelForCausalLM,
    DynamicCache,
    GenerationConfig,
)
from transformers.masking_utils import eager_mask

from surgery.conversion import convert
from surgery.loading.caches import with_cache
from tests.families import VOCABULARY, WINDOW
from tests.runtime.test_family_matrix import load

SCALES = torch.tensor([0.15, 0.25, 0.35, 0.45], dtype=torch.float64)
LENGTH = 60
# Full layers alone, sliding alone, both in turn, and chunks beside full layers.
FAMILIES = ("llama", "mistral", "gemma2", "llama4_text")
SLIDING: dict[str, dict[str, Any]] = {"mistral": {"sliding_window": WINDOW}}


def oracle(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: Any, **kwargs: Any
) -> tuple[torch.Tensor, None]:
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1).double(), value.repeat_interleave(groups, 1).double()
    allowed = attention_mask > torch.finfo(attention_mask.dtype).min / 2  # (batch, 1, queries, keys)
    n = allowed.sum(-1, keepdim=True).double().clamp(min=1)
    scores = query.double() @ key.transpose(-1, -2) * kwargs["scaling"]
    if module.oracle_operated:
        scores = SCALES[None, :, None, None] * n.log() * scores
    if kwargs.get("softcap") is not None:
        scores = torch.tanh(scores / kwargs["softcap"]) * kwargs["softcap"]
    weights = scores.masked_fill(~allowed, torch.finfo(torch.float64).min).softmax(-1)
    return (weights @ value).to(query.dtype).transpose(1, 2).contiguous(), None


@pytest.fixture(autouse=True)
def _registered() -> Any:
    AttentionInterface.register("oracle", oracle)
    AttentionMaskInterface.register("oracle", eager_mask)
    yield
    del AttentionInterface._global_mapping["oracle"]
    del AttentionMaskInterface._global_mapping["oracle"]


@pytest.fixture(params=FAMILIES)
def pair(request: Any, make_source: Any, tmp_path: Path) -> tuple[Any, Any]:
    """The stock model with the oracle, and the converted model with the same scales."""
    source = make_source(request.param, **SLIDING.get(request.param, {}))
    operated = load(convert(source, form="paper", layers="all", output=tmp_path / "out").output)
    with torch.no_grad():
        for name, parameter in operated.named_parameters():
            if name.endswith("ssmax.scale"):
                parameter.copy_(SCALES)
    stock = load(source, attn_implementation="oracle")
    for (_, own), (_, other) in zip(stock.named_modules(), _without_operations(operated), strict=True):
        own.oracle_operated = hasattr(other, "ssmax")
    assert any(module.oracle_operated for module in stock.modules())
    return stock, operated


def _without_operations(model: Any) -> list[tuple[str, Any]]:
    return [(name, module) for name, module in model.named_modules() if not name.endswith("ssmax")]


def ids(batch: int = 1, length: int = LENGTH) -> torch.Tensor:
    return torch.randint(3, VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(5))


def difference(pair: tuple[Any, Any], backend: str, call: Callable[[Any], torch.Tensor]) -> float:
    """Greatest difference between the outputs of the stock model with the oracle and of the operated model."""
    stock, operated = pair
    if backend == "sdpa" and not operated._supports_sdpa:
        pytest.skip("this family has no sdpa attention")
    operated.set_attn_implementation(backend)
    with torch.no_grad():
        return (call(stock) - call(operated)).abs().max().item()


@pytest.fixture(params=["eager", "sdpa"])
def backend(request: Any) -> str:
    return str(request.param)


def logits(model: Any, tokens: torch.Tensor, **kwargs: Any) -> torch.Tensor:
    found: torch.Tensor = model(input_ids=tokens, **kwargs).logits
    return found


@pytest.mark.parametrize("hidden", [(20, 30), (3, 9), (40, 58)])
def test_a_hole_in_the_mask(pair: Any, backend: str, hidden: tuple[int, int]) -> None:
    mask = torch.ones(1, LENGTH, dtype=torch.long)
    mask[:, hidden[0] : hidden[1]] = 0
    real = mask.bool()
    assert difference(pair, backend, lambda model: logits(model, ids(), attention_mask=mask)[real]) < 2e-4


def test_padding_in_the_middle_of_one_row_of_a_batch(pair: Any, backend: str) -> None:
    """A second turn that is batched: the first turns end unevenly, and the prompt is padded on the left too."""
    mask = torch.ones(3, LENGTH, dtype=torch.long)
    mask[1, 30:41], mask[2, :5], mask[2, 25:32] = 0, 0, 0
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    real = mask.bool()

    def call(model: Any) -> torch.Tensor:
        return logits(model, ids(3), attention_mask=mask, position_ids=positions)[real]

    assert difference(pair, backend, call) < 2e-4


def test_a_second_turn_after_a_padded_first_one(pair: Any, backend: str) -> None:
    mask = torch.ones(2, LENGTH, dtype=torch.long)
    mask[1, 20:30] = 0
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    tokens = ids(2)

    def call(model: Any) -> torch.Tensor:
        cache = DynamicCache(config=model.config)
        model(
            input_ids=tokens[:, :30], attention_mask=mask[:, :30], position_ids=positions[:, :30], **with_cache(cache)
        )
        second = model(
            input_ids=tokens[:, 30:], attention_mask=mask, position_ids=positions[:, 30:], **with_cache(cache)
        )
        found: torch.Tensor = second.logits
        return found

    assert difference(pair, backend, call) < 2e-4


def _prefix() -> torch.Tensor:
    """Queries of the prefix see all of it."""
    allowed = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()
    allowed[:12, :12] = True
    return allowed


def _tree() -> torch.Tensor:
    """Two branches of 10 tokens after a stem of 40: neither sees the other."""
    allowed = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()
    allowed[50:, 40:50] = False
    return allowed


def _sparse() -> torch.Tensor:
    allowed = torch.rand(LENGTH, LENGTH, generator=torch.Generator().manual_seed(3)) < 0.4
    return allowed.tril() | torch.eye(LENGTH, dtype=torch.bool)


@pytest.mark.parametrize("make", [_prefix, _tree, _sparse])
def test_a_mask_of_four_dimensions(pair: Any, backend: str, make: Callable[[], torch.Tensor]) -> None:
    allowed = make()[None, None]
    additive = torch.zeros(allowed.shape).masked_fill(~allowed, torch.finfo(torch.float32).min)
    given = {"eager": additive, "sdpa": allowed}[backend]

    def call(model: Any) -> torch.Tensor:
        own = additive if model is pair[0] else given
        return logits(model, ids(), attention_mask=own, use_cache=False)

    assert difference(pair, backend, call) < 2e-4


def test_masks_by_kind_of_layer(pair: Any, backend: str) -> None:
    kinds = getattr(pair[1].config, "layer_types", None)
    if kinds is None or len(set(kinds)) < 2:
        pytest.skip("the layers of this family share one mask")
    masks = {kind: make()[None, None] for kind, make in zip(sorted(set(kinds)), (_tree, _sparse), strict=True)}

    def call(model: Any) -> torch.Tensor:
        own = {
            kind: torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
            for kind, mask in masks.items()
        }
        return logits(model, ids(), attention_mask=own if model is pair[0] or backend == "eager" else masks)

    assert difference(pair, backend, call) < 2e-4


@pytest.mark.parametrize("value", [2, -1, True])
def test_any_number_but_zero_is_a_real_token(pair: Any, backend: str, value: int) -> None:
    mask = torch.ones(2, LENGTH, dtype=torch.bool if value is True else torch.long) * value
    mask[1, :9] = 0
    real = mask.bool()
    assert difference(pair, backend, lambda model: logits(model, ids(2), attention_mask=mask)[real]) < 2e-4


def _thinned(model: Any, kept: torch.Tensor) -> DynamicCache:
    """A cache of 30 keys from which a program drops some, as cache compression does."""
    cache = DynamicCache()
    model(input_ids=ids(length=30), **with_cache(cache))
    for layer in cache.layers:
        layer.keys, layer.values = layer.keys[:, :, kept], layer.values[:, :, kept]
    return cache


@pytest.mark.parametrize("queries", [10, 1])
@pytest.mark.parametrize("masked", [False, True])
def test_a_thinned_cache(pair: Any, backend: str, queries: int, masked: bool) -> None:
    kept = torch.arange(0, 30, 3)
    positions = torch.arange(30, 30 + queries)[None]
    mask = torch.ones(1, 10 + queries, dtype=torch.long) if masked else None

    def call(model: Any) -> torch.Tensor:
        own: dict[str, Any] = with_cache(_thinned(model, kept))
        return logits(model, ids(length=40)[:, 30 : 30 + queries], attention_mask=mask, position_ids=positions, **own)

    assert difference(pair, backend, call) < 2e-4


@pytest.mark.parametrize("use_cache", [False, True])
@pytest.mark.parametrize("positions", ["late", "every other one"])
def test_positions_alone_count_nothing(pair: Any, backend: str, positions: str, use_cache: bool) -> None:
    chosen = {"late": torch.arange(60, 60 + LENGTH), "every other one": torch.arange(LENGTH) * 2}[positions][None]
    assert (
        difference(pair, backend, lambda model: logits(model, ids(), position_ids=chosen, use_cache=use_cache)) < 2e-4
    )


def test_packed_documents_without_a_cache(pair: Any, backend: str) -> None:
    """transformers cuts the mask where positions restart, unless there is a cache or a mask too."""
    chosen = torch.cat([torch.arange(25), torch.arange(LENGTH - 25)])[None]
    assert difference(pair, backend, lambda model: logits(model, ids(), position_ids=chosen, use_cache=False)) < 2e-4


def test_the_oracle_tells_one_n_from_another(pair: Any) -> None:
    """A control: without the multiplier the logits are far away."""
    stock, operated = pair
    for module in stock.modules():
        module.oracle_operated = False
    assert difference((stock, operated), "eager", lambda model: logits(model, ids())) > 1e-2


def _few_pages() -> Any:
    """A small cache; by default transformers takes most of the machine's memory."""
    configuration = pytest.importorskip("transformers.generation.configuration_utils")
    if not hasattr(configuration, "ContinuousBatchingConfig"):
        pytest.skip("this version of transformers has no ContinuousBatchingConfig")
    return configuration.ContinuousBatchingConfig(num_blocks=16, block_size=32, max_batch_tokens=128)


def _batched(model: Any, rows: list[list[int]], config: GenerationConfig) -> list[list[int]]:
    """Greedy tokens of continuous batching."""
    found = model.generate_batch(rows, generation_config=config, continuous_batching_config=_few_pages())
    outputs = sorted(found.values(), key=lambda output: int(output.request_id.rpartition("_")[2]))
    for output in outputs:
        if output.error is not None:
            raise RuntimeError(output.error)
    return [list(output.generated_tokens) for output in outputs]


ROWS = [ids(length=length)[0].tolist() for length in (5, 23, 40)]
GREEDY = GenerationConfig(max_new_tokens=12, do_sample=False, pad_token_id=0, eos_token_id=VOCABULARY - 1)


def _alone(model: Any, rows: list[list[int]]) -> list[list[int]]:
    return [model.generate(torch.tensor([row]), generation_config=GREEDY)[0, len(row) :].tolist() for row in rows]


def test_continuous_batching(pair: Any, backend: str) -> None:
    stock, operated = pair
    if "chunked_attention" in (getattr(operated.config, "layer_types", None) or ()):
        pytest.skip("transformers has no continuous batching for chunked attention")
    if backend == "sdpa" and not operated._supports_sdpa:
        pytest.skip("this family has no sdpa attention")
    operated.set_attn_implementation(backend)
    expected = _alone(stock, ROWS)
    assert _batched(operated, ROWS, GREEDY) == expected
    paged = operated.generate(
        torch.tensor([ROWS[1]]),
        generation_config=GREEDY,
        cache_implementation="paged",
        continuous_batching_config=_few_pages(),
    )
    assert paged.flatten()[len(ROWS[1]) :].tolist() == expected[1]


@pytest.mark.parametrize("form", ["gated", "unit"])
def test_screening_in_continuous_batching_is_right_or_refused(make_source: Any, tmp_path: Path, form: str) -> None:
    from surgery.verification.presentations import randomized

    options = {"name": "screening", "open": True, "form": form, "layers": "all"}
    full = load(convert(make_source("llama"), [options], output=tmp_path / "full").output)
    sliding = make_source("mistral", **SLIDING["mistral"])
    windowed = load(convert(sliding, [options], output=tmp_path / "windowed").output)
    with randomized(full), randomized(windowed):
        expected = _alone(full, ROWS)
        if tuple(map(int, transformers.__version__.split(".")[:2])) >= (5, 24):
            assert _batched(full, ROWS, GREEDY) == expected
        else:
            with pytest.raises(RuntimeError, match="continuous batching"):
                _batched(full, ROWS, GREEDY)
        full.set_attn_implementation("eager")
        with pytest.raises(RuntimeError, match="attn_implementation"):
            _batched(full, ROWS, GREEDY)
        # Pages of a sliding layer are used again, so keys do not lie in the order of the text.
        with pytest.raises(RuntimeError, match="continuous batching"):
            _batched(windowed, ROWS, GREEDY)


def test_open_heads_in_sliding_layers_run_in_continuous_batching(make_source: Any, tmp_path: Path) -> None:
    source = make_source("mistral", **SLIDING["mistral"])
    options = {"name": "screening", "open": True, "layers": "all"}
    opened = load(convert(source, [options], output=tmp_path / "open").output)
    stock = AutoModelForCausalLM.from_pretrained(source).eval()
    if tuple(map(int, transformers.__version__.split(".")[:2])) < (5, 24):
        pytest.skip("before 5.24 transformers reads the pages in the backend")
    assert _batched(opened, ROWS, GREEDY) == _alone(stock, ROWS)


def test_keys_are_counted_in_a_layer_only_for_an_operation_that_scales_the_query(
    make_source: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from surgery.runtime import attention

    counted: list[str] = []
    original = attention.visible_keys_in_layer
    monkeypatch.setattr(
        attention,
        "visible_keys_in_layer",
        lambda n, mask, name, *rest: counted.append(name) or original(n, mask, name, *rest),
    )
    for options, calls in (({"name": "screening", "open": True}, 0), ({"name": "ssmax"}, 1)):
        logits(load(convert(make_source("llama"), [options], output=tmp_path / options["name"]).output), ids())
        assert len(counted) == calls
