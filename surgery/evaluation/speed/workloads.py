"""The timed workloads, prefill and decoding, and the memory of a model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from surgery.loading.caches import new_cache, with_cache
from surgery.loading.head import last_logits_only, vocabulary
from surgery.peak_memory import PeakMemory

Call = Callable[[], Any]


def prefill_call(model: Any, length: int) -> Call:
    """One forward pass over ``length`` tokens; the head runs on the last token only, if the model supports it."""
    tokens = _tokens(model, length)

    @torch.no_grad()
    def call() -> None:
        model(input_ids=tokens, use_cache=False, **last_logits_only(model))
        _wait(model)

    return call


def decoding_call(model: Any, prompt: int, steps: int) -> Call:
    """``steps`` tokens, one at a time, after a prompt in the cache."""
    tokens = _tokens(model, prompt)
    cache = new_cache(model)
    with torch.no_grad():
        model(input_ids=tokens, **with_cache(cache), **last_logits_only(model))

    @torch.no_grad()
    def call() -> None:
        for _ in range(steps):
            model(input_ids=tokens[:, :1], **with_cache(cache))
        cache.crop(-steps)
        _wait(model)

    return call


def memory(model: Any, length: int) -> dict[str, int | None]:
    """Bytes of the weights, of a cache of ``length`` tokens, and the peak of a prefill beside the weights.

    The peak is None where the system does not report it; on a CPU, only Linux does.
    """
    weights = sum(tensor.numel() * tensor.element_size() for tensor in _once(model))
    cache = new_cache(model)
    tokens = _tokens(model, length)
    with torch.no_grad(), PeakMemory(model.device) as peak:
        model(input_ids=tokens, **with_cache(cache), **last_logits_only(model))
    held = sum(
        tensor.numel() * tensor.element_size()
        for layer in cache.layers
        for tensor in (getattr(layer, "keys", None), getattr(layer, "values", None))
        if tensor is not None
    )
    return {
        "weights": weights,
        "cache": held,
        "prefill": peak.above,
    }


def _tokens(model: Any, length: int) -> torch.Tensor:
    found = torch.randint(0, vocabulary(model), (1, length), generator=torch.Generator().manual_seed(0))
    return found.to(model.device)


def _once(model: Any) -> list[torch.Tensor]:
    """Parameters and buffers; tied ones count once."""
    return list({id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}.values())


def _wait(model: Any) -> None:
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
