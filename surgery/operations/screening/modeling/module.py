# Copyright 2026 The surgery authors. Licensed under the Apache License, Version 2.0.
"""The module of screening: hooks into attention and the cache."""

from __future__ import annotations

import inspect

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from surgery.operations.screening.modeling.acceptance import Acceptance
from surgery.operations.screening.modeling.attention import (
    no_mask_message,
    no_softmax_message,
    observe,
    screened_attention,
)
from surgery.operations.screening.modeling.cache import WindowedCache, WindowedKeys
from surgery.operations.screening.modeling.kept_keys import attend_to_cached_keys
from surgery.operations.screening.modeling.reference import screening_of
from surgery.runtime.operation import AttentionCall

# Beginnings of the names of transformers' own backends; a name with a slash is a kernel from the hub.
TRANSFORMERS_BACKENDS = ("eager", "sdpa", "flash_", "flex_", "paged|")


class Screening(Acceptance, name="screening"):
    """Rejects keys, per query head, in attention and in the cache; see :class:`Acceptance`."""

    def check_backend(self, name: str) -> None:
        """Refuse a serving engine, whose attention is a backend of its own.

        Whether a head is open is not known before the weights are read, and an engine's compiler cannot ask then.
        """
        if not name.startswith(TRANSFORMERS_BACKENDS) and "/" not in name:
            raise ValueError(no_mask_message(name) if self.form == "gated" else no_softmax_message(name))

    def attend(self, call: AttentionCall) -> tuple[torch.Tensor, torch.Tensor | None] | None:
        """Attention over the accepted keys; None if every key is accepted."""
        screening = screening_of(call)
        if isinstance(call.key, WindowedKeys):
            return attend_to_cached_keys(screening, call)
        if not screening.enabled:
            return None
        if screening.observer is not None:
            observe(call)
        if not screening.learns() and screening.is_open():
            screening.path = "open"
            return None
        paged = "read_index" in call.options
        if paged and (call.window is not None or "cache" in inspect.signature(call.backend).parameters):
            # A page is used again once its keys have left the window, so keys do not lie in the order of the text.
            # Before 5.24, transformers reads the pages in the backend, which then takes the cache.
            raise ValueError(
                "screening does not run in continuous batching in layers with a sliding window, or with transformers "
                "before 5.24: use generate."
            )
        return screened_attention(call)

    @classmethod
    def make_cache(cls, model: PreTrainedModel) -> Cache:
        """A :class:`WindowedCache`."""
        return WindowedCache(model)
