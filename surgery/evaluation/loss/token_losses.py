"""Next-token losses at every position, without a (length, vocabulary) matrix in memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from surgery.evaluation.prefill import chunk_size
from surgery.loading.caches import new_cache, with_cache
from surgery.loading.head import LOGITS_AT_ONCE, base_output, head_logits, vocabulary


@torch.no_grad()
def token_losses(
    model: Any,
    input_ids: torch.Tensor,
    *,
    chunk: int | None = None,
    rows: int | None = None,
    on_tokens: Callable[[int], None] | None = None,
) -> torch.Tensor:
    """-log p(token | tokens before it), in float32, at every position but the first.

    The base model runs over the sequence, in chunks with a cache where it is longer than one. Its hidden states then
    go through the model's head a few rows at a time.

    Args:
        model: a causal language model of transformers.
        input_ids: ``(batch, length)``, without padding.
        chunk: tokens per pass of the base model; all at once by default.
        rows: positions whose logits are in memory at once; default: as many as fit into :data:`LOGITS_AT_ONCE`.
        on_tokens: called with each count of finished tokens, over the whole batch.

    Returns:
        ``(batch, length - 1)``, float32, on the CPU; entry i is the loss of token i + 1.
    """
    batch, length = input_ids.shape
    chunk = chunk_size(model, chunk or length, length)
    rows = rows or max(1, LOGITS_AT_ONCE // (batch * vocabulary(model)))
    losses = torch.empty(batch, length - 1, dtype=torch.float32)
    cache = new_cache(model) if chunk < length else None
    for begin in range(0, length, chunk):
        end = min(begin + chunk, length)
        kept = {"use_cache": False} if cache is None else with_cache(cache)
        output = base_output(model, input_ids=input_ids[:, begin:end], **kept)
        for start in range(begin, min(end, length - 1), rows):
            stop = min(start + rows, end, length - 1)
            logits = head_logits(model, output, input_ids[:, begin:end], start - begin, stop - begin)
            targets = input_ids[:, start + 1 : stop + 1].to(logits.device)
            found = cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction="none")
            losses[:, start:stop] = found.view(batch, stop - start).cpu()
        if on_tokens is not None:
            on_tokens(batch * (end - begin))
    return losses
