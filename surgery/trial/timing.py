"""How long a pass of the model takes on this machine, before a trial is planned."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch

from surgery.evaluation.loss.token_losses import token_losses
from surgery.evaluation.prefill import chunk_size, prefill
from surgery.loading.caches import borrowed, with_cache
from surgery.loading.head import vocabulary
from surgery.loading.pace import ModelSize, measure_pace
from surgery.operations.tried import QUESTION_TOKENS
from surgery.trial.plan import Slowness

# Tokens of the text that is timed, and how often it is: a single pass says little on a busy machine.
_TIMED, _TIMES = 512, 3


def time_model(model: Any, size: ModelSize, longest: int) -> Slowness:
    """Time a text and a question about it.

    Args:
        model: a causal language model of transformers.
        size: of the model.
        longest: most tokens of the text.
    """
    length = min(_TIMED, longest)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(vocabulary(model), (1, length), generator=generator).to(model.device)
    question = tokens[:, :QUESTION_TOKENS]
    text = _seconds(lambda: token_losses(model, tokens))
    if chunk_size(model, 1, 2) == 1:
        cache, _ = prefill(model, tokens, length)
        asked = _seconds(lambda: _ask(model, question, cache))
    else:  # each question takes a pass over its text
        asked = text
    pace = measure_pace()
    promised = [size.seconds(pace, one, one) for one in (length, QUESTION_TOKENS)]
    return Slowness(text / promised[0], asked / promised[1])


@torch.no_grad()
def _ask(model: Any, question: torch.Tensor, cache: Any) -> float:
    """Returns a value, so that nothing is left to compute on a device that works ahead."""
    with borrowed(cache) as lent:
        return float(model(input_ids=question, **with_cache(lent)).logits[0, -1, 0])


def _seconds(work: Callable[[], object]) -> float:
    """The median; a first turn sets up memory and kernels."""
    work()
    found = []
    for _ in range(_TIMES):
        began = time.perf_counter()
        work()
        found.append(time.perf_counter() - began)
    return median(found)
