"""Many questions about one haystack: the text goes through the model once, and each question continues from there."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from surgery.data import Document
from surgery.evaluation.measure import OnTokens, PartPlan, Unit
from surgery.evaluation.prefill import chunk_size, prefill
from surgery.evaluation.retrieval.options import DEFAULT_FACTS, RetrievalPart
from surgery.evaluation.retrieval.probes import HaystackMaker, ProbeSet
from surgery.evaluation.retrieval.questions import ask, groups, keeps_keys_alone, repeated, states_of
from surgery.loading.caches import borrowed, with_cache
from surgery.loading.head import head_logits, with_hidden

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def plan_haystacks(part: RetrievalPart, tokenizer: PreTrainedTokenizerBase, documents: Sequence[Document]) -> PartPlan:
    """One unit for each haystack, ``part.samples`` for each length."""
    maker = HaystackMaker(tokenizer, documents, part.needles or DEFAULT_FACTS, part.depths)
    units, questions = [], 0
    digest = hashlib.sha256()
    for length in part.lengths:
        for sample in range(part.samples):
            key = f"{length}/{sample}"
            haystack = maker.make(length, sample, seed=f"{part.task}/{part.seed}/{key}")
            for probe in haystack.probes:
                digest.update(json.dumps([key, probe.prompt, probe.answer]).encode())
            questions += len(haystack.probes)
            units.append(Unit(key, haystack.tokens, key, (length, haystack)))
    return PartPlan(tuple(units), {"prompts": questions, "fingerprint": digest.hexdigest()})


@torch.no_grad()
def haystack_logits(
    model: Any, haystack: ProbeSet, chunk: int, on_tokens: OnTokens, *, once: bool = True
) -> list[torch.Tensor]:
    """Logits for each token of each answer, ``(answer, vocabulary)``, given the prompt and the answer before it.

    Args:
        model: a causal language model of transformers.
        haystack: the prompts and their answers.
        chunk: tokens per forward pass of the text.
        on_tokens: called with each count of finished tokens.
        once: run the tokens that all prompts share once. A family whose model cannot continue a prompt from a cache
            runs each prompt whole in any case.
    """
    continues = chunk_size(model, 1, 2) == 1
    if not (once and continues and haystack.shared):
        return [_alone(model, probe.prompt, probe.answer, on_tokens) for probe in haystack.probes]
    shared = torch.tensor([haystack.probes[0].prompt[: haystack.shared]], device=model.device)
    cache, _ = prefill(model, shared, chunk, on_tokens)
    if keeps_keys_alone(cache):
        return _together(model, haystack, cache, on_tokens)
    found = []
    for probe in haystack.probes:
        own = (*probe.prompt[haystack.shared :], *probe.answer)
        with borrowed(cache) as lent:
            tokens = torch.tensor([own[:-1]], device=model.device)
            logits = model(input_ids=tokens, **with_cache(lent)).logits[0, -len(probe.answer) :].float()
        on_tokens(len(own))
        found.append(logits)
    return found


def _together(model: Any, haystack: ProbeSet, cache: Any, on_tokens: OnTokens) -> list[torch.Tensor]:
    """The logits of several questions from each pass; those of other positions are not computed."""
    found: list[torch.Tensor] = []
    for probes in groups(haystack.probes, haystack.shared):
        asked = ask(model, haystack.shared, probes, repeated(cache, states_of(cache), len(probes)))
        hidden = asked.output["last_hidden_state"][asked.rows, asked.positions][None]
        logits = head_logits(model, with_hidden(asked.output, hidden), asked.targets[None], 0, len(asked.targets))
        found += logits[0].float().split([len(probe.answer) for probe in probes])
        on_tokens(sum(len(probe.prompt) + len(probe.answer) - haystack.shared for probe in probes))
    return found


def _alone(model: Any, prompt: tuple[int, ...], answer: tuple[int, ...], on_tokens: OnTokens) -> torch.Tensor:
    """The same from one pass over one whole prompt."""
    tokens = torch.tensor([(*prompt, *answer[:-1])], device=model.device)
    logits: torch.Tensor = model(input_ids=tokens, use_cache=False).logits[0, -len(answer) :].float()
    on_tokens(len(answer))
    return logits
