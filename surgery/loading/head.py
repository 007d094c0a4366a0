"""A model's head by itself: logits of some positions, without ever holding a (length, vocabulary) matrix."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

# Logits held at once while measuring, in elements: 64 MiB in float32.
LOGITS_AT_ONCE = 2**24


def vocabulary(model: Any) -> int:
    """Logits per position."""
    return int(model.get_output_embeddings().weight.shape[0])


def base_output(model: Any, **inputs: Any) -> Any:
    """The base model's output, called exactly as the whole model calls it when it is given ``inputs``."""
    seen: list[Any] = []
    hook = backbone(model).register_forward_hook(lambda module, arguments, output: seen.append(output))
    try:
        # Without the last the whole matrix of logits would be made once, to be thrown away.
        model(**inputs, **last_logits_only(model))
    finally:
        hook.remove()
    return seen[-1]


def head_logits(model: Any, output: Any, input_ids: torch.Tensor, begin: int, end: int) -> torch.Tensor:
    """Logits ``(batch, end - begin, vocabulary)`` of some positions, from a base model's output.

    The hidden states go through the model's own ``forward`` with the base model standing aside, so that whatever a
    family does between hidden states and logits (a scale, a final soft cap) is done by its own code.

    Args:
        model: a causal language model of transformers, or an adapter on one.
        output: from `base_output`.
        input_ids: ``(batch, length)``, that ``output`` comes from.
        begin: the first position.
        end: behind the last one.
    """
    with with_base_output(model, with_hidden(output, output["last_hidden_state"][:, begin:end])):
        logits: torch.Tensor = model(input_ids=input_ids[:, begin:end], use_cache=False).logits
    return logits


def backbone(model: Any) -> Any:
    """What makes the hidden states that the model's head reads: its decoder (OPT's head passes by its base model).

    ModernBERT calls the last part of its head the decoder; its base model is the right one. Llama 4 calls a model with
    its head the decoder; the base model inside is the right one.
    """
    from surgery.runtime import base_model_of

    decoder = model.get_decoder()
    return base_model_of(decoder if hasattr(decoder, "get_input_embeddings") else model.base_model)


def with_hidden(output: Any, hidden: torch.Tensor) -> Any:
    """A base model's output with other hidden states."""
    changed = copy.copy(output)
    changed["last_hidden_state"] = hidden
    return changed


@contextmanager
def with_base_output(model: Any, output: Any) -> Iterator[None]:
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


def last_logits_only(model: Any) -> dict[str, int]:
    """The keyword that spares the logits of all positions but the last, for models that know it."""
    own = model.get_base_model() if hasattr(model, "get_base_model") else model  # an adapter takes any keyword
    return {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(own.forward).parameters else {}
