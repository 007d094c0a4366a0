"""Key-value caches, under their name in the installed transformers: ``past_key_values``, since 5.24 ``cache``."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache as once
from typing import Any


def new_cache(model: Any) -> Any:
    """An empty cache of the kind that the model's layers need; some models bring their own."""
    from transformers import DynamicCache

    if hasattr(model, "new_cache"):
        return model.new_cache()
    return DynamicCache(config=model.config.get_text_config())


def with_cache(cache: Any) -> dict[str, Any]:
    """Keywords for a call of a model that reads the cache and adds to it."""
    return {**named(cache), "use_cache": True}


def named(cache: Any) -> dict[str, Any]:
    """The cache, or None, as a keyword for a call of a model."""
    return {_name(): cache}


def cache_of(output: Any) -> Any:
    """The cache in a model's output, or None."""
    return getattr(output, _name())


@once
def _name() -> str:
    from transformers.modeling_outputs import BaseModelOutputWithPast

    return "cache" if "cache" in BaseModelOutputWithPast.__dataclass_fields__ else "past_key_values"


@contextmanager
def borrowed(cache: Any) -> Iterator[Any]:
    """A cache to continue within a ``with`` block; afterwards ``cache`` holds what it held before.

    Layers that keep every token are cut back. Others forget tokens as new ones come, so a copy is lent.
    """
    from transformers.cache_utils import DynamicLayer

    if not all(type(layer) is DynamicLayer for layer in cache.layers):
        yield copy.deepcopy(cache)
        return
    before = cache.get_seq_length()
    try:
        yield cache
    finally:
        added = cache.get_seq_length() - before
        if added:
            cache.crop(-added)
