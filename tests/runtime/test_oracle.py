"""The multiplier against SSMax's own definition, computed independently from the attention mask.

The oracle is a dense attention that runs inside the *stock* model: n is counted from the rows of the mask, and the
weights are n^(s z) / sum n^(s z) for the paper's form. Nothing of the travelling code takes part in it.
"""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

from surgery.anatomy import FAMILIES, read_anatomy
from surgery.checkpoint import open_checkpoint
from surgery.conversion import convert
from surgery.runtime import base_model_of
from tests.families import VOCABULARY, WINDOW, families_for_the_matrix
from tests.runtime.test_family_matrix import load

SCALES = torch.tensor([0.15, 0.25, 0.35, 0.45])
REFERENCE = 64
SEEN: list[str] = []


def oracle(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: Any, **kwargs: Any
) -> tuple[torch.Tensor, None]:
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    allowed = attention_mask > torch.finfo(attention_mask.dtype).min / 2  # (batch, 1, queries, keys)
    n = allowed.sum(-1, keepdim=True).float().clamp(min=1)
    scores = query @ key.transpose(-1, -2) * kwargs["scaling"]
    if getattr(module, "oracle_form", None) == "paper":
        scores = SCALES[None, :, None, None] * n.log() * scores
    elif getattr(module, "oracle_form", None) == "anchored":
        scores = (1 + SCALES[None, :, None, None] * (n.log() - math.log(REFERENCE))) * scores
    if kwargs.get("softcap") is not None:
        scores = torch.tanh(scores / kwargs["softcap"]) * kwargs["softcap"]
    # Finite, since padding sees no key; where a key is allowed, the mask may still hold a number of the family's own.
    scores = torch.where(allowed, scores + attention_mask, torch.finfo(scores.dtype).min)
    sinks = getattr(module, "sinks", None)
    if sinks is not None:  # learned scores of nothing, which take their share of the softmax
        scores = torch.cat([scores, sinks.view(1, -1, 1, 1).expand(*scores.shape[:3], 1)], dim=-1)
    weights = scores.softmax(-1)[..., : key.shape[2]]
    return (weights @ value).transpose(1, 2).contiguous(), None


def engine(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: Any, **kwargs: Any
) -> tuple[torch.Tensor, None]:
    """A serving engine's own attention, registered under a name that the tool has never heard of."""
    assert "surgery_visible_keys" not in kwargs, "an engine must not be handed keywords that it does not know"
    SEEN.append(type(module).__name__)
    return oracle(SimpleNamespace(sinks=getattr(module, "sinks", None)), query, key, value, attention_mask, **kwargs)


@pytest.fixture(autouse=True)
def _registered() -> Any:
    for name, function in (("oracle", oracle), ("engine", engine)):
        AttentionInterface.register(name, function)
        AttentionMaskInterface.register(name, eager_mask)
    yield
    for name in ("oracle", "engine"):
        del AttentionInterface._global_mapping[name]
        del AttentionMaskInterface._global_mapping[name]


def ids() -> torch.Tensor:
    return torch.randint(3, VOCABULARY, (2, 3 * WINDOW), generator=torch.Generator().manual_seed(5))


def pair(source: Path, out: Path, form: str) -> tuple[Any, Any]:
    """The stock model with the oracle, and the converted model with the same scales."""
    stock = load(source, attn_implementation="oracle")
    row = FAMILIES[stock.config.model_type]
    for layer in read_anatomy(open_checkpoint(source)).layers:
        if layer.kind != "none" and not layer.scaled:
            base_model_of(stock).get_submodule(row.attention.format(layer=layer.index)).oracle_form = form
    folder = convert(source, form=form, layers="all", reference_length=REFERENCE, output=out).output
    operated = load(folder)
    with torch.no_grad():
        for name, parameter in operated.named_parameters():
            if name.endswith("ssmax.scale"):
                parameter.copy_(SCALES)
    return stock, operated


@pytest.mark.parametrize("form", ["paper", pytest.param("anchored", marks=pytest.mark.slow)])
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_operated_model_computes_ssmax(make_source: Any, tmp_path: Path, family: str, form: str) -> None:
    stock, operated = pair(make_source(family), tmp_path / "out", form)
    mask = torch.ones(2, 3 * WINDOW, dtype=torch.long)
    mask[1, :9] = 0  # one row is left-padded
    with torch.no_grad():
        expected = stock(input_ids=ids(), attention_mask=mask).logits
        found = operated(input_ids=ids(), attention_mask=mask).logits
    real = mask.bool()
    assert (expected[real] - found[real]).abs().max() < 2e-4
    # The oracle must have worked with more than plain softmax, or the comparison says nothing.
    for module in stock.modules():
        if hasattr(module, "oracle_form"):
            module.oracle_form = None
    with torch.no_grad():
        plain = stock(input_ids=ids(), attention_mask=mask).logits
    assert (expected[real] - plain[real]).abs().max() > 1e-2


@pytest.mark.parametrize("family", families_for_the_matrix())
def test_backend_of_an_unknown_name_gets_the_multiplied_query(make_source: Any, tmp_path: Path, family: str) -> None:
    stock, operated = pair(make_source(family), tmp_path / "out", "paper")
    with torch.no_grad():
        SEEN.clear()
        stock.set_attn_implementation("engine")
        stock(input_ids=ids())
        calls = len(SEEN)  # one a layer; DiffLlama attends twice
        expected = operated(input_ids=ids()).logits
        SEEN.clear()
        operated.set_attn_implementation("engine")
        found = operated(input_ids=ids()).logits
    assert len(SEEN) == calls >= sum(hasattr(module, "ssmax") for module in operated.modules())
    assert all(name.startswith("Surgery") for name in SEEN)
    assert (expected - found).abs().max() < 2e-4


def test_layers_that_were_left_alone_hand_nothing_of_ours_to_an_engine(make_source: Any, tmp_path: Path) -> None:
    """Gemma 2's sliding layers, which are skipped unless they are asked for; the engine checks its keywords."""
    source = make_source("gemma2")
    stock = load(source, attn_implementation="engine")
    operated = load(convert(source, output=tmp_path / "out").output, attn_implementation="engine")
    SEEN.clear()
    with torch.no_grad():
        expected, found = stock(input_ids=ids()).logits, operated(input_ids=ids()).logits
    assert SEEN == ["Gemma2Attention"] * 3 + ["SurgeryGemma2Attention"] * 3
    assert sum(hasattr(module, "ssmax") for module in operated.modules()) < 3
    assert torch.equal(expected, found)
