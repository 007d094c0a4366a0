"""The head of a model alone: logits of some positions, without a (length, vocabulary) matrix in memory."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

# Largest number of logits in memory while measuring: 64 MiB in float32.
LOGITS_AT_ONCE = 2**24


def vocabulary(model: Any) -> int:
    """The number of logits per position. A model without an output layer computes them with its input embedding."""
    return int((model.get_output_embeddings() or model.get_input_embeddings()).weight.shape[0])


def base_output(model: Any, **inputs: Any) -> Any:
    """The output of the base model, as the whole model calls it for ``inputs``."""
    seen: list[Any] = []
    hook = backbone(model).register_forward_hook(lambda module, arguments, output: seen.append(output))
    try:
        # Logits of the last position only; the others would be computed for nothing.
        model(**inputs, **last_logits_only(model))
    finally:
        hook.remove()
    return seen[-1]


def head_logits(model: Any, output: Any, input_ids: torch.Tensor, begin: int, end: int) -> torch.Tensor:
    """Logits ``(batch, end - begin, vocabulary)`` of some positions, from the output of a base model.

    The model's own ``forward`` gets the hidden states in place of running its base model, so the family's own code
    does everything between hidden states and logits (a scale, a final soft cap).

    Args:
        model: a causal language model of transformers, or an adapter on one.
        output: from `base_output`.
        input_ids: ``(batch, length)``, the input of ``output``.
        begin: the first position.
        end: one past the last position.
    """
    with with_base_output(model, with_hidden(output, output["last_hidden_state"][:, begin:end])):
        logits: torch.Tensor = model(input_ids=input_ids[:, begin:end], use_cache=False).logits
    return logits


def backbone(model: Any) -> Any:
    """The module that computes the hidden states for the head: in most families the decoder.

    OPT's head reads its decoder and not its base model. The decoder of ModernBERT is the last part of its head, so its
    base model is used. The decoder of Llama 4 has a head of its own, so the base model in it is used.
    """
    from surgery.runtime import base_model_of

    decoder = model.get_decoder()
    return base_model_of(decoder if hasattr(decoder, "get_input_embeddings") else model.base_model)


def with_hidden(output: Any, hidden: torch.Tensor) -> Any:
    """A copy of a base model's output with other hidden states."""
    changed = copy.copy(output)
    changed["last_hidden_state"] = hidden
    return changed


@contextmanager
def with_base_output(model: Any, output: Any) -> Iterator[None]:
    """Make the base model return ``output`` without running, within a ``with`` block."""
    base = backbone(model)
    before = base.__dict__.get("forward")  # accelerate may have set its own
    base.forward = lambda *arguments, **keywords: output
    try:
        yield
    finally:
        if before is None:
            del base.forward
        else:
            base.forward = before


def last_logits_only(model: Any) -> dict[str, int]:
    """The keyword that limits the logits to the last position; empty for a model without it."""
    own = model.get_base_model() if hasattr(model, "get_base_model") else model  # an adapter takes any keyword
    return {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(own.forward).parameters else {}
