# Copyright 2026 The surgery authors. Licensed under the Apache License, Version 2.0.
"""The base class of an operation on attention: its parameters, and the hooks that the rest of the code calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache

# Module class of each operation by its name in config.json. An operation's file adds its class when it is imported.
OPERATIONS: dict[str, type[OperationModule]] = {}
# Operations that have no module: the family's own class performs them, as config.json says.
IN_CONFIG_ALONE: set[str] = set()

# The keyword that carries n from the base model's forward to the attention modules.
VISIBLE_KEYS = "surgery_visible_keys"
# The attribute of an attention module with chunked attention: keys in a chunk.
CHUNK = "surgery_chunk"


class AttentionCall(NamedTuple):
    """One call of the attention backend, as an attention module makes it.

    Attributes:
        name: of the configured backend, such as ``sdpa``.
        backend: that backend.
        eager: the family's own dense attention; None if it names none.
        module: the attention module.
        query: ``(batch, heads, queries, head_dim)``, scaled by the operations of the layer.
        unscaled_query: the query as the module gave it.
        key, value: ``(batch, key-value heads, keys, head_dim)``.
        attention_mask: as the backend takes it, or None.
        visible_keys: n of each query, within its chunk but not its sliding window, ``(batch or 1, queries)``.
        window: keys in the layer's sliding window; None if it has none.
        options: the other keywords of the call.
    """

    name: str
    backend: Callable[..., Any]
    eager: Callable[..., Any] | None
    module: nn.Module
    query: torch.Tensor
    unscaled_query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    attention_mask: Any
    visible_keys: torch.Tensor
    window: int | None
    options: dict[str, Any]


class OperationModule(nn.Module):
    """Parameters per query head of one attention layer: one vector over the chosen heads for each.

    They are float32 whatever the model's dtype: an optimizer step cannot move a bfloat16 value of 0.15. With
    ``enabled`` set to False the layer computes what it did before the operation.
    """

    scales_query = False  # whether a subclass has its own scale_query
    scales_output = False  # whether an instance multiplies the output of the attention

    def __init_subclass__(cls, name: str | None = None, **kwargs: Any) -> None:
        """``name``: of the operation in config.json; it is also the name of its module in an attention module."""
        super().__init_subclass__(**kwargs)
        cls.scales_query = cls.scale_query is not OperationModule.scale_query
        if name is not None:
            OPERATIONS[name] = cls

    def __init__(self, options: dict[str, Any], num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.start: dict[str, float] = options.get("start") or {}
        self.heads: list[int] | None = options.get("heads")
        self.enabled = True

    def scale_query(self, query: torch.Tensor, visible_keys: torch.Tensor) -> torch.Tensor:
        """Hook: the query ``(batch, heads, queries, head_dim)`` as the backend is given it.

        ``visible_keys``: n in this layer, within its window or chunk, ``(batch or 1, queries)``.
        """
        return query

    def scale_output(self, output: torch.Tensor) -> torch.Tensor:
        """Hook, if ``scales_output``: the output of the attention ``(..., heads, head_dim)``, before its projection."""
        return output

    def attend(self, call: AttentionCall) -> tuple[torch.Tensor, torch.Tensor | None] | None:
        """Hook: attention in place of the backend, ``(batch, queries, heads, head_dim)`` and weights or None.

        Called for a disabled operation too. Return None to leave the call to the backend. Read the operation's state
        from ``call.module``: PEFT may have put a wrapper around this module.
        """
        return None

    def check_backend(self, name: str) -> None:
        """Hook, when a model is built: raise ValueError if the operation cannot run with its attention backend."""

    @classmethod
    def make_cache(cls, model: PreTrainedModel) -> Cache | None:
        """Hook: the cache of a model whose config asks for a windowed cache; None if the operation brings none."""
        return None

    def _add_parameters(self, *names: str) -> None:
        for name in names:
            size = self.num_heads if self.heads is None else len(self.heads)
            setattr(self, name, nn.Parameter(torch.empty(size, dtype=torch.float32)))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Set every parameter to its start value from config.json."""
        for name, parameter in self.named_parameters(recurse=False):
            parameter.fill_(self.start[name])

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> OperationModule:
        """Follow moves between devices but no casts: ``model.to(torch.bfloat16)`` leaves the parameters float32."""

        def keep_dtype(tensor: torch.Tensor) -> torch.Tensor:
            applied = fn(tensor)
            return applied if applied.dtype == tensor.dtype else tensor.to(applied.device)

        return super()._apply(keep_dtype, recurse)


class OperationCache(DynamicCache):
    """A cache that an operation brings. The base model calls :meth:`note` before each forward pass that uses it."""

    def note(self, attention_mask: Any, visible_keys: torch.Tensor) -> None:
        """Take note of the new tokens.

        Args:
            attention_mask: as the base model is given it: ``(batch, past + length)``, or None.
            visible_keys: n of the new tokens, ``(batch or 1, length)``.
        """
        raise NotImplementedError
