"""Next-token losses at every position, without ever holding a (length, vocabulary) matrix."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.functional import cross_entropy

# Logits held at once, in elements: 64 MiB in float32.
LOGITS_AT_ONCE = 2**24


@torch.no_grad()
def token_losses(model: Any, input_ids: torch.Tensor, *, rows: int | None = None) -> torch.Tensor:
    """-log p(token | tokens before it), in float32, at every position but the first.

    The base model runs once. Its hidden states then go through the model's own ``forward`` in chunks, with the base
    model standing aside, so that whatever a family does between hidden states and logits (a scale, a final soft cap)
    is done by its own code.

    Args:
        model: a causal language model of transformers.
        input_ids: ``(batch, length)``, without padding.
        rows: positions per chunk; by default as many as fit into :data:`LOGITS_AT_ONCE`.

    Returns:
        ``(batch, length - 1)``, float32, on the CPU; entry i is the loss of token i + 1.
    """
    batch, length = input_ids.shape
    output = _base_output(model, input_ids)
    hidden = output["last_hidden_state"]
    rows = rows or max(1, LOGITS_AT_ONCE // (batch * model.get_output_embeddings().weight.shape[0]))
    losses = torch.empty(batch, length - 1, dtype=torch.float32)
    for start in range(0, length - 1, rows):
        stop = min(start + rows, length - 1)
        with _base_model_gives(model, _with_hidden(output, hidden[:, start:stop])):
            logits = model(input_ids=input_ids[:, start:stop], use_cache=False).logits
        targets = input_ids[:, start + 1 : stop + 1].to(logits.device)
        chunk = cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction="none")
        losses[:, start:stop] = chunk.view(batch, stop - start).cpu()
    return losses


def _base_output(model: Any, input_ids: torch.Tensor) -> Any:
    """The base model's output, called exactly as the whole model calls it."""
    seen: list[Any] = []
    # Without it the whole matrix of logits would be made once, to be thrown away.
    last_only = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}
    hook = model.base_model.register_forward_hook(lambda module, arguments, output: seen.append(output))
    try:
        model(input_ids=input_ids, use_cache=False, **last_only)
    finally:
        hook.remove()
    return seen[-1]


def _with_hidden(output: Any, hidden: torch.Tensor) -> Any:
    changed = copy.copy(output)
    changed["last_hidden_state"] = hidden
    return changed


@contextmanager
def _base_model_gives(model: Any, output: Any) -> Iterator[None]:
    base = model.base_model
    before = base.__dict__.get("forward")  # accelerate puts its own there
    base.forward = lambda *arguments, **keywords: output
    try:
        yield
    finally:
        if before is None:
            del base.forward
        else:
            base.forward = before
