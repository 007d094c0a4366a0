# Copyright 2026 The surgery authors. Licensed under the Apache License, Version 2.0.
"""Attention over the keys that screening accepts, by the family's dense attention or by a backend with a mask."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from surgery.operations.screening.modeling.acceptance import Observation
from surgery.operations.screening.modeling.bands import attend_in_bands, follow_the_first_key
from surgery.operations.screening.modeling.block_masks import dense_mask
from surgery.operations.screening.modeling.blocks import Block, blocks
from surgery.operations.screening.modeling.flex import attend_in_flex, has_gradients
from surgery.operations.screening.modeling.reference import (
    dense_block,
    needs_gradients,
    recomputed,
    screening_of,
    softmax_weights,
)
from surgery.operations.screening.modeling.unit_blocks import attend_with_units
from surgery.runtime.operation import AttentionCall

# Name of the code that ran, for a layer that went through its own dense code.
PATHS = {"gated": "reference", "unit": "reference, unit", "between": "reference, between gated and unit"}

# What a family may add to the scores before its softmax, or to the softmax.
ADDITIONS = ("softcap", "position_bias", "s_aux")


def screened_attention(call: AttentionCall) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Attention over the accepted keys, in blocks of queries so that memory is bounded.

    Several ways give the same result. The reference multiplies the family's own softmax weights by alpha and
    renormalises them, or sums the values times alpha; it runs for the backend "eager", and if t, tau or w get
    gradients. Of units it then computes only the keys that their windows reach. The other ways are FlexAttention,
    bands of keys, and ln alpha as a mask that is added to the scores.

    Returns:
        ``(batch, queries, heads, head_dim)``, and the weights if the backend is "eager".
    """
    module, name, screening = call.module, call.name, screening_of(call)
    kind, learns = screening.kind(), screening.learns()
    if kind != "gated" and name not in ("sdpa", "eager", "flex_attention"):
        raise ValueError(no_softmax_message(name))
    reference = call.backend is call.eager or learns or kind == "between"
    if name == "flex_attention":
        reference = learns or screening.mixes() or (needs_gradients(call) and not has_gradients(screening, call))
        if not reference:
            screening.path = name if kind == "gated" else f"{name}, unit"
            return attend_in_flex(screening, call), None
    elif not reference and name != "sdpa":
        raise ValueError(no_mask_message(name))
    call = without_empty_keys(call)
    additions = ADDITIONS if kind == "gated" else ()
    unusual = [word for word in additions if call.options.get(word) is not None]
    unusual += ["dropout"] if module.training and call.options.get("dropout") else []
    # Without thresholds the bands are torch's own kernels, which have gradients.
    if not reference and call.attention_mask is None and not unusual and _bands_run(screening, call):
        screening.path = f"{name} in bands" if kind == "gated" else "bands, unit"
        return attend_in_bands(screening, call), None
    if kind == "unit" and call.backend is not call.eager:
        screening.path = "blocks, unit"
        return attend_with_units(screening, call), None
    screening.path = PATHS[kind] if reference else name
    if not reference and not torch.is_grad_enabled():
        return _masked_bands(screening, call, plain=not unusual), None
    outputs, weights = [], []
    query, key = call.query, call.key
    for block in blocks(screening.sinks, query, key.shape[2], call.attention_mask, call.visible_keys):
        present = (key[:, :, : block.keys], call.value[:, :, : block.keys])
        tensors = (query[:, :, block.rows], call.unscaled_query[:, :, block.rows], *present)
        if reference:
            output, kept, rejected = recomputed(dense_block, call, block, *tensors)
            if rejected is not None:
                screening.counter(rejected, int(block.allowed.sum()) * (len(query) // len(block.allowed)))
            if call.backend is call.eager:  # other backends give none
                weights.append(nn.functional.pad(kept, (0, key.shape[2] - block.keys)))
        else:
            output = recomputed(masked_block, call, block, *tensors)
        outputs.append(output)
    return torch.cat(outputs, 1).contiguous(), torch.cat(weights, 2) if weights else None


def _bands_run(screening: Any, call: AttentionCall) -> bool:
    """Whether bands can be computed: always without gradients, and with them where no head has a threshold."""
    if not torch.is_grad_enabled():
        return True
    bands = screening.bands(call.key.shape[1])
    if screening.kind() != "gated" or not all(band.accepting and band.same for band in bands):
        return False
    return follow_the_first_key(call.visible_keys, call.query.shape[2], call.key.shape[2])


def _masked_bands(screening: Any, call: AttentionCall, plain: bool) -> torch.Tensor:
    """Attention with a mask, by key-value heads that accept the same keys, ``(batch, queries, heads, head_dim)``.

    Open heads go to the backend as without screening. Those with a window alone are given only the keys that are in a
    window of a block of queries; ``plain``: unless the family adds something to the scores of all keys.
    """
    query, key, value, mask = call.query, call.key, call.value, call.attention_mask
    output = query.new_empty(query.shape[0], query.shape[2], query.shape[1], value.shape[-1])
    boolean = mask is None or mask.dtype == torch.bool
    for band in screening.bands(key.shape[1]):
        members = torch.tensor(band.members(query.shape[1] // key.shape[1]), device=query.device)
        q, unscaled, k, v = (
            query[:, members],
            call.unscaled_query[:, members],
            key[:, band.groups],
            value[:, band.groups],
        )
        if band.accepting and band.same and band.window is None:
            output[:, :, members] = call.backend(call.module, q, k, v, mask, **call.options)[0]
            continue
        alone = plain and boolean and band.accepting and band.same
        narrow = (q[:, :1], band.window) if alone else (q, None)
        located = (key.shape[2], mask, call.visible_keys)
        for block in blocks(screening.sinks, narrow[0], *located, window=narrow[1]):
            rows = q[:, :, block.rows]
            present = (k[:, :, : block.keys], v[:, :, : block.keys])
            if alone:
                part = windowed_block(call, block.within(band.window), rows, *present)
            else:
                part = masked_block(call, block, rows, unscaled[:, :, block.rows], *present, members)
            output[:, block.rows[:, None], members] = part
    return output


def windowed_block(
    call: AttentionCall, block: Block, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
) -> torch.Tensor:
    """A block of queries by a backend that takes a mask, where ``block.allowed`` says all; tensors as of
    ``dense_block``. Keys that no query of the block may attend to are left out.
    """
    columns = block.allowed.flatten(0, -2).any(0).nonzero().flatten()
    if len(columns) < block.keys:
        key, value = key[:, :, columns], value[:, :, columns]
    allowed = block.allowed[..., columns]
    survives = allowed.any(-1, keepdim=True)  # a row without any key would give NaN
    output, _ = call.backend(call.module, query, key, value, allowed | ~survives, **call.options)
    return output * survives.transpose(1, 2)


def observe(call: AttentionCall) -> None:
    """Show the observer of this layer's screening the weights and the relevance; the output does not depend on it."""
    screening, visible = screening_of(call), without_empty_keys(call)
    query, key, value = visible.query, visible.key, visible.value
    has_sink = hasattr(call.module, "sinks")
    with torch.no_grad():
        for block in blocks(
            screening.sinks,
            query,
            key.shape[2],
            visible.attention_mask,
            call.visible_keys,
            screening.observed_rows,
            whole=True,
        ):
            weights = softmax_weights(call, block, query[:, :, block.rows], key, value)
            relevance = screening.relevance(call.unscaled_query[:, :, block.rows], key)
            accepted = screening.acceptance(relevance, block.distance, block.sinks) * block.allowed
            kept = screening.weigh(accepted, weights, has_sink)
            located = (block.distance, block.allowed, block.sinks)
            screening.observer(Observation(block.rows, weights, relevance, *located, accepted, kept, value))


def masked_block(
    call: AttentionCall,
    block: Block,
    query: torch.Tensor,
    unscaled_query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    members: torch.Tensor | None = None,
) -> torch.Tensor:
    """A block of queries by a backend that takes ln alpha as a mask; arguments as of ``dense_block``."""
    screening = screening_of(call)
    relevance = screening.relevance(unscaled_query, key)
    accepted = screening.acceptance(relevance, block.distance, block.sinks, members) * block.allowed
    rejected = accepted == 0
    bias = accepted.masked_fill(rejected, 1.0).log().masked_fill(rejected, -torch.inf)
    survives = ~rejected.all(-1, keepdim=True)
    if block.bias is not None:
        bias = bias + block.bias
    # A row of -inf alone would give NaN. Its finite output is multiplied by zero.
    bias = torch.where(survives, bias, torch.zeros_like(bias)).to(query.dtype)
    output, _ = call.backend(call.module, query, key, value, bias, **call.options)
    return output * survives.transpose(1, 2)


def without_empty_keys(call: AttentionCall) -> AttentionCall:
    """The call without keys after the last query: if there is no mask, a static cache holds empty room there."""
    mask, length = call.attention_mask, call.query.shape[2]
    if call.name == "flex_attention":
        return call._replace(attention_mask=dense_mask(mask, length, call.key.shape[2]))
    if mask is None and length > 1:
        return call._replace(key=call.key[:, :, :length], value=call.value[:, :, :length])
    if mask is not None and (not isinstance(mask, torch.Tensor) or mask.dim() != 4):
        raise ValueError(
            f"screening needs a 4-D attention mask or none, not {type(mask).__name__}; load the model with "
            'attn_implementation="sdpa" or "eager".'
        )
    return call


def no_mask_message(name: str) -> str:
    """Why screening does not run with the attention implementation ``name``."""
    return (
        f"screening needs a mask per head that is added to the scores, and the attention implementation {name!r} is "
        'not known to take one. Load the model with attn_implementation="sdpa", "flex_attention" or "eager".'
    )


def no_softmax_message(name: str) -> str:
    """Why screening's form unit does not run with the attention implementation ``name``."""
    return (
        f"screening's form unit does not run with the attention implementation {name!r}, which computes a softmax of "
        'the scores alone. Load the model with attn_implementation="sdpa", "flex_attention" or "eager".'
    )
