"""Prefill in chunks, so that the memory for long sequences stays bounded."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from surgery.anatomy import FAMILIES
from surgery.anatomy.anatomy import MODEL_TYPE_PREFIX
from surgery.errors import SurgeryError
from surgery.loading.caches import new_cache, with_cache
from surgery.loading.head import last_logits_only


@torch.no_grad()
def prefill(
    model: Any, input_ids: torch.Tensor, chunk: int, on_tokens: Callable[[int], None] | None = None
) -> tuple[Any, torch.Tensor]:
    """Fill a cache with a prompt, ``chunk`` tokens at a time.

    Args:
        model: a causal language model of transformers.
        input_ids: ``(batch, length)``, without padding.
        chunk: tokens per forward pass.
        on_tokens: called with each count of finished tokens, over the whole batch.

    Returns:
        the cache, and the logits after the last token, ``(batch, vocabulary)``, float32.
    """
    cache = new_cache(model)
    batch, length = input_ids.shape
    chunk = chunk_size(model, chunk, length)
    for start in range(0, length, chunk):
        part = input_ids[:, start : start + chunk]
        output = model(input_ids=part, **with_cache(cache), **last_logits_only(model))
        if on_tokens is not None:
            on_tokens(batch * part.shape[1])
    return cache, output.logits[:, -1].float()


def chunk_size(model: Any, chunk: int, length: int) -> int:
    """``chunk``, or the whole length for a family whose model cannot continue a prompt from a cache."""
    family = FAMILIES.get(model.config.model_type.removeprefix(MODEL_TYPE_PREFIX))
    return chunk if family is None or family.continues else length


@contextmanager
def readable_errors(name: str, batch: int, length: int) -> Iterator[None]:
    """Re-raise errors of a forward pass over ``length`` tokens with a clear message."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise SurgeryError(
            f"{name}: {batch} sequences of {length} tokens do not fit in the memory of the device",
            hint="Pass a smaller --batch-size or --length, --dtype bfloat16, or set a smaller chunk in the suite.",
        ) from error
    except IndexError as error:
        raise SurgeryError(
            f"{name}: the model cannot run {length} tokens: {error}",
            hint="Its position or embedding table is too small. Pass a smaller --length.",
        ) from error
