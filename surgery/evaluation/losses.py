"""Next-token losses at every position, without ever holding a (length, vocabulary) matrix."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from surgery.evaluation.prefilling import last_only, new_cache, piece

# Logits held at once, in elements: 64 MiB in float32.
LOGITS_AT_ONCE = 2**24


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
    go through the model's own ``forward`` a few rows at a time, with the base model standing aside, so that whatever a
    family does between hidden states and logits (a scale, a final soft cap) is done by its own code.

    Args:
        model: a causal language model of transformers.
        input_ids: ``(batch, length)``, without padding.
        chunk: tokens per pass of the base model; all at once by default.
        rows: positions whose logits are held at once; by default as many as fit into :data:`LOGITS_AT_ONCE`.
        on_tokens: told of tokens as they are done, over the whole batch.

    Returns:
        ``(batch, length - 1)``, float32, on the CPU; entry i is the loss of token i + 1.
    """
    batch, length = input_ids.shape
    chunk = piece(model, chunk or length, length)
    rows = rows or max(1, LOGITS_AT_ONCE // (batch * model.get_output_embeddings().weight.shape[0]))
    losses = torch.empty(batch, length - 1, dtype=torch.float32)
    cache = new_cache(model) if chunk < length else None
    for begin in range(0, length, chunk):
        end = min(begin + chunk, length)
        output = _base_output(model, input_ids[:, begin:end], cache)
        hidden = output["last_hidden_state"]
        for start in range(begin, min(end, length - 1), rows):
            stop = min(start + rows, end, length - 1)
            with base_model_gives(model, with_hidden(output, hidden[:, start - begin : stop - begin])):
                logits = model(input_ids=input_ids[:, start:stop], use_cache=False).logits
            targets = input_ids[:, start + 1 : stop + 1].to(logits.device)
            found = cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction="none")
            losses[:, start:stop] = found.view(batch, stop - start).cpu()
        if on_tokens is not None:
            on_tokens(batch * (end - begin))
    return losses


def _base_output(model: Any, input_ids: torch.Tensor, cache: Any) -> Any:
    """The base model's output, called exactly as the whole model calls it; the cache grows by the tokens."""
    seen: list[Any] = []
    kept = {"use_cache": False} if cache is None else {"use_cache": True, "past_key_values": cache}
    hook = backbone(model).register_forward_hook(lambda module, arguments, output: seen.append(output))
    try:
        # Without the last the whole matrix of logits would be made once, to be thrown away.
        model(input_ids=input_ids, **kept, **last_only(model))
    finally:
        hook.remove()
    return seen[-1]


def backbone(model: Any) -> Any:
    """What makes the hidden states that the model's head reads: its decoder (OPT's head passes by its base model).

    ModernBERT calls the last part of its head the decoder; its base model is the right one.
    """
    decoder = model.get_decoder()
    return decoder if hasattr(decoder, "get_input_embeddings") else model.base_model


def with_hidden(output: Any, hidden: torch.Tensor) -> Any:
    """A base model's output with other hidden states."""
    changed = copy.copy(output)
    changed["last_hidden_state"] = hidden
    return changed


@contextmanager
def base_model_gives(model: Any, output: Any) -> Iterator[None]:
    """The model's own head on an output of its base model that is at hand, which does not run."""
    base = backbone(model)
    before = base.__dict__.get("forward")  # accelerate puts its own there
    base.forward = lambda *arguments, **keywords: output
    try:
        yield
    finally:
        if before is None:
            del base.forward
        else:
            base.forward = before
