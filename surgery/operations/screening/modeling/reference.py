# Copyright 2026 The surgery authors. Licensed under the Apache License, Version 2.0.
"""The reference of screened attention: a block of queries, from the family's own dense weights and alpha."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from surgery.operations.screening.modeling.blocks import Block
from surgery.runtime.operation import AttentionCall


def screening_of(call: AttentionCall) -> Any:
    """The screening module of the layer that makes a call; PEFT may have put a wrapper with its own state around it."""
    return call.module.screening


def needs_gradients(call: AttentionCall) -> bool:
    """Whether the query, the keys, the values or the numbers of the screening get gradients now."""
    tensors = (call.query, call.unscaled_query, call.key, call.value, *screening_of(call).parameters())
    return torch.is_grad_enabled() and any(one.requires_grad for one in tensors)


def recomputed(part: Callable[..., Any], call: AttentionCall, block: Block, *tensors: Any) -> Any:
    """``part(call, block, *tensors)``, which the backward pass computes again.

    Kept for the backward pass, what a block computes for every pair of query and key would take gigabytes.
    """
    work = functools.partial(part, call, block)
    return checkpoint(work, *tensors, use_reentrant=False) if needs_gradients(call) else work(*tensors)


def dense_block(
    call: AttentionCall,
    block: Block,
    query: torch.Tensor,
    unscaled_query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    members: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """A block of queries by the reference of :func:`screened_attention`.

    Args:
        call: the call that the block is of.
        block: rows of the queries, and where their keys are.
        query, unscaled_query: of the block, ``(batch, heads, rows, head_dim)``.
        key, value: of the block's keys.
        members: numbers of the query heads; None for all of them.

    Returns:
        ``(batch, rows, heads, head_dim)``; the weights of the block's keys; and the number of rejected keys per head,
        or None if no counter is set.
    """
    screening, module = screening_of(call), call.module
    kind = screening.kind()
    weights = None if kind == "unit" else softmax_weights(call, block, query, key, value)
    relevance = screening.relevance(unscaled_query, key)
    accepted = screening.acceptance(relevance, block.distance, block.sinks, members) * block.allowed
    counts = screening.counter is not None and screening.learns()
    rejected = screening.count_rejected(relevance, accepted, block, members) if counts else None
    has_sink = hasattr(module, "sinks")
    kept = screening.weigh(accepted, weights, has_sink, members).to(value.dtype)
    kept = nn.functional.dropout(kept, call.options.get("dropout", 0.0), module.training)
    groups = query.shape[1] // value.shape[1]
    output = kept @ value.repeat_interleave(groups, 1)
    if kind != "gated" or (screening.form == "unit" and screening.learns()):
        # At p = 1 it changes nothing, and gives gain and bound a gradient of zero rather than none.
        output = screening.finish(output, members)
    return output.transpose(1, 2), kept, rejected


def softmax_weights(
    call: AttentionCall, block: Block, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
) -> torch.Tensor:
    """Softmax weights of a block of queries before screening, by the family's own dense attention."""
    if call.eager is None:
        raise ValueError(f"{type(call.module).__name__} names no dense attention, which screening needs here")
    bias = torch.zeros((), dtype=query.dtype, device=query.device) if block.bias is None else block.bias
    bias = bias.masked_fill(~block.allowed, torch.finfo(query.dtype).min)
    weights: torch.Tensor = call.eager(call.module, query, key, value, bias, **{**call.options, "dropout": 0.0})[1]
    return weights
