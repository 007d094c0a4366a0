"""What programs do with a model: beams, drafts, caches that are cut, turned and multiplied, prompts that are learned.

Each is compared with the oracle of `test_foreign_masks.py`, which counts n from the mask that each layer gets.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import DynamicCache, StaticCache

from surgery.loading.caches import with_cache
from surgery.loading.model import recompute
from tests.runtime.test_foreign_masks import _registered, backend, difference, ids, logits, pair

__all__ = ["_registered", "backend", "pair"]

MASK = torch.ones(3, 30, dtype=torch.long)
MASK[1, :7], MASK[2, :3], MASK[2, 25:] = 0, 0, 0
LEFT = MASK[:2]
GENERATION: dict[str, Any] = {"max_new_tokens": 8, "min_new_tokens": 8, "pad_token_id": 0, "do_sample": False}
Call = Callable[[Any], torch.Tensor]


def generated(model: Any, **given: Any) -> torch.Tensor:
    inputs = given if "inputs_embeds" in given else {"input_ids": ids(2, 30), **given}
    found: torch.Tensor = model.generate(attention_mask=LEFT, **GENERATION, **inputs)
    return found


def by_steps(model: Any, **given: Any) -> torch.Tensor:
    """The logits of every generated token."""
    out = model.generate(
        ids(2, 30), attention_mask=LEFT, output_logits=True, return_dict_in_generate=True, **GENERATION, **given
    )
    return torch.stack(out.logits)


def filled(model: Any, cache: Any, tokens: torch.Tensor, **given: Any) -> Any:
    model(input_ids=tokens, **given, **with_cache(cache))
    return cache


def embedded(model: Any) -> torch.Tensor:
    found: torch.Tensor = model(inputs_embeds=model.get_input_embeddings()(ids(2, 30)), attention_mask=LEFT).logits
    return found[LEFT.bool()]


def assisted(model: Any) -> torch.Tensor:
    draft = copy.deepcopy(model)
    with torch.no_grad():
        weight = draft.get_output_embeddings().weight
        weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(3)) * 0.05)
    found: torch.Tensor = model.generate(ids(1, 24), assistant_model=draft, **GENERATION)
    return found


def from_the_prompt(model: Any) -> torch.Tensor:
    found: torch.Tensor = model.generate(ids(1, 20).repeat(1, 2), prompt_lookup_num_tokens=4, **GENERATION)
    return found


def rolled_back(model: Any) -> torch.Tensor:
    cache = filled(model, DynamicCache(), ids(1, 40))
    if hasattr(cache, "layers") and cache.get_seq_length() == 40:
        cache.crop(-15)
    return logits(model, ids(1, 12), **with_cache(cache))


def reordered(model: Any) -> torch.Tensor:
    cache = filled(model, DynamicCache(config=model.config), ids(3, 30), attention_mask=MASK)
    order = torch.tensor([2, 0, 1])
    cache.reorder_cache(order)
    mask = torch.cat([MASK[order], torch.ones(3, 4, dtype=torch.long)], 1)
    positions = (mask.cumsum(-1) - 1)[:, -4:]
    return logits(model, ids(3, 4), attention_mask=mask, position_ids=positions, **with_cache(cache))


def one_of_a_batch(model: Any) -> torch.Tensor:
    cache = filled(model, DynamicCache(config=model.config), ids(3, 30), attention_mask=MASK)
    cache.batch_select_indices(torch.tensor([1]))
    mask = torch.cat([MASK[1:2], torch.ones(1, 4, dtype=torch.long)], 1)
    return logits(model, ids(1, 4), attention_mask=mask, **with_cache(cache))


def repeated(model: Any) -> torch.Tensor:
    cache = filled(model, DynamicCache(config=model.config), ids(1, 30))
    cache.batch_repeat_interleave(3)
    return logits(model, ids(3, 5), **with_cache(cache))


def static_in_pieces(model: Any) -> torch.Tensor:
    cache = StaticCache(config=model.config, max_cache_len=80)
    return torch.cat([logits(model, piece, **with_cache(cache)) for piece in ids().split(13, 1)], 1)


def static_and_padded(model: Any) -> torch.Tensor:
    cache, mask = StaticCache(config=model.config, max_cache_len=64), LEFT
    pieces = [logits(model, ids(2, 30), attention_mask=mask, **with_cache(cache))[mask.bool()]]
    for token in ids(2, 5).split(1, 1):
        mask = torch.cat([mask, torch.ones(2, 1, dtype=torch.long)], 1)
        pieces.append(logits(model, token, attention_mask=mask, **with_cache(cache))[:, 0])
    return torch.cat(pieces)


def in_pieces(model: Any) -> torch.Tensor:
    cache = DynamicCache(config=model.config)
    return torch.cat([logits(model, piece, **with_cache(cache)) for piece in ids().split(7, 1)], 1)


def drafts_as_a_tree(model: Any) -> torch.Tensor:
    """Six drafts of the same next token; each draft sees the text and itself."""
    cache = filled(model, DynamicCache(), ids(1, 20))
    allowed = torch.cat([torch.ones(6, 20, dtype=torch.bool), torch.eye(6, dtype=torch.bool)], 1)
    mask = torch.zeros(1, 1, 6, 26).masked_fill(~allowed, torch.finfo(torch.float32).min)
    positions = torch.full((1, 6), 20)
    return logits(model, ids(1, 6), attention_mask=mask, position_ids=positions, **with_cache(cache))


def as_an_encoder(model: Any) -> torch.Tensor:
    return logits(model, ids(1, 24), attention_mask=torch.zeros(1, 1, 24, 24), use_cache=False)


def each_row_its_own(model: Any) -> torch.Tensor:
    allowed = torch.rand(3, 1, 24, 24, generator=torch.Generator().manual_seed(1)) < 0.5
    allowed = allowed.tril() | torch.eye(24, dtype=torch.bool)
    mask = torch.zeros(3, 1, 24, 24).masked_fill(~allowed, float("-inf"))
    return logits(model, ids(3, 24), attention_mask=mask, use_cache=False)


def gradients(model: Any) -> torch.Tensor:
    """Of the embedding, with layers that run twice."""
    recompute(model.train(), True)
    with torch.enable_grad():
        logits(model, ids(3, 30), attention_mask=MASK, use_cache=False)[MASK.bool()].square().mean().backward()
    found: torch.Tensor = model.get_input_embeddings().weight.grad.clone()
    model.zero_grad()
    recompute(model.eval(), False)
    return found


def _learned(model: Any, kind: str) -> Any:
    peft = pytest.importorskip("peft")
    config = getattr(peft, kind)(task_type="CAUSAL_LM", num_virtual_tokens=5)
    learned = peft.get_peft_model(copy.deepcopy(model), config).eval()
    with torch.no_grad():
        for name, parameter in learned.named_parameters():
            if "prompt" in name:
                noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(4))
                parameter.copy_(noise * 0.3)
    return learned


def prompt_tuning(model: Any) -> torch.Tensor:
    return logits(_learned(model, "PromptTuningConfig"), ids(2, 30), attention_mask=LEFT)[:, -10:]


def prefix_tuning(model: Any) -> torch.Tensor:
    return logits(_learned(model, "PrefixTuningConfig"), ids(2, 30), attention_mask=LEFT)[LEFT.bool()]


CASES: dict[str, Call] = {
    "beams": lambda model: generated(model, num_beams=3, num_return_sequences=2),
    "logits of generation": by_steps,
    "generation without a cache": lambda model: by_steps(model, use_cache=False),
    "generation with a static cache": lambda model: by_steps(model, cache_implementation="static"),
    "generation from embeddings": lambda model: generated(
        model, inputs_embeds=model.get_input_embeddings()(ids(2, 30))
    ),
    "padding left and right": lambda model: logits(model, ids(3, 30), attention_mask=MASK)[MASK.bool()],
    "positions of one row for a batch": lambda model: logits(
        model, ids(3, 30), attention_mask=MASK, position_ids=torch.arange(30)[None]
    )[MASK.bool()],
    **{
        call.__name__.replace("_", " "): call
        for call in (
            *(embedded, assisted, from_the_prompt, rolled_back, reordered, one_of_a_batch, repeated),
            *(static_in_pieces, static_and_padded, in_pieces, drafts_as_a_tree, as_an_encoder, each_row_its_own),
            *(gradients, prompt_tuning, prefix_tuning),
        )
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_odd_presentations(pair: Any, backend: str, case: str) -> None:
    assert difference(pair, backend, CASES[case]) < 2e-4
