# Copyright 2026 The surgery authors. Licensed under the Apache License, Version 2.0.
"""n, the number of keys that a query may attend to."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def count_visible_keys(
    length: int,
    device: torch.device,
    attention_mask: Any = None,
    position_ids: torch.Tensor | None = None,
    past_length: int | torch.Tensor | None = 0,
) -> torch.Tensor:
    """Number of keys that each query may attend to in a layer without a window, its own key included.

    A 4-D mask says it. Else it is the smallest of three numbers: the position in the query's own document plus one,
    the keys in the cache and in this call up to the query, and the real keys of a 2-D mask up to the query. Positions
    of more than two dimensions (M-RoPE) are not counts, except that of four rows the first holds those of the text.

    Args:
        length: number of queries in this call.
        device: device of the result.
        attention_mask: ``(batch, past + length)`` with 0 for padding and any other number for a real token, or
            ``(batch, 1, length, keys)`` (boolean, or added to the scores), or a mapping of those by layer type, or
            None. Masks of other kinds are ignored.
        position_ids: ``(batch or 1, length)``, or None for positions that continue after the cache.
        past_length: number of keys in the cache; None if an engine keeps the keys, so that only positions tell n.

    Returns:
        ``(batch or 1, length)``, float32, at least 1.
    """
    columns = torch.arange(length, device=device) + (0 if past_length is None else past_length)
    visible = columns[None] + 1
    if position_ids is not None and position_ids.dim() == 3 and position_ids.shape[0] == 4:
        position_ids = position_ids[0]
    if position_ids is not None and position_ids.dim() <= 2:
        by_position = position_ids.reshape(-1, length).to(device) + 1
        visible = by_position if past_length is None else torch.minimum(by_position, visible)

    if isinstance(attention_mask, dict) and attention_mask:  # a layer of any type sees no more than the widest mask
        masks = attention_mask.values()
        each = [count_visible_keys(length, device, mask, position_ids, past_length) for mask in masks]
        return torch.stack(torch.broadcast_tensors(*each)).amax(0)
    if isinstance(attention_mask, torch.Tensor) and attention_mask.dim() == 2:
        running = (attention_mask.to(device) != 0).cumsum(-1)
        # The mask covers the cache too, and may cover the rest of a static one: pick the columns of these queries.
        visible = torch.minimum(visible, running.index_select(-1, columns.clamp(max=running.shape[-1] - 1)))
    elif isinstance(attention_mask, torch.Tensor) and attention_mask.dim() == 4:
        visible = allowed_keys(attention_mask.to(device))[:, 0, -length:].sum(-1)
    return visible.clamp(min=1).to(torch.float32)


def allowed_keys(mask: torch.Tensor) -> torch.Tensor:
    """A 4-D mask, boolean or added to the scores, as boolean: which keys a query may attend to."""
    return mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2


def visible_keys_in_layer(
    visible_keys: torch.Tensor, mask: Any, name: str, keys: int, window: int | None, chunk: int | None
) -> torch.Tensor:
    """n in one layer: the keys that the mask for its backend shows, at most n; without a mask, by window and chunk.

    Args:
        visible_keys: of :func:`count_visible_keys`, ``(batch or 1, queries)``.
        mask: of the layer: ``(batch or 1, 1, queries, keys)``, ``(batch, keys)``, a block mask, or None.
        name: of the backend.
        keys: number of keys that the backend is given.
        window, chunk: keys in the layer's sliding window, and in its chunks; None if it has none.
    """
    queries, device = visible_keys.shape[-1], visible_keys.device
    counted = None
    if isinstance(mask, torch.Tensor) and mask.dim() == 4:
        counted = allowed_keys(mask)[:, 0, -queries:].sum(-1)
    elif isinstance(mask, torch.Tensor) and mask.shape[-1] == keys and chunk is None:
        running = (mask != 0).cumsum(-1)
        before = 0 if window is None else nn.functional.pad(running, (window, 0))[:, :keys]
        counted = (running - before)[:, -queries:]
    elif hasattr(mask, "mask_mod"):
        head, columns = torch.zeros(1, dtype=torch.long, device=device), torch.arange(keys, device=device)
        rows = torch.arange(mask.shape[0], device=device)[:, None, None]
        parts = torch.arange(queries, device=device).split(max(1, 2**20 // keys))
        counted = torch.cat([mask.mask_mod(rows, head, part[:, None], columns).sum(-1) for part in parts], -1)
    elif mask is None and name == "sdpa" and queries > 1:  # causal, from the first key on
        counted = torch.arange(1, queries + 1, device=device)[None]
    elif mask is None and name in ("sdpa", "eager"):
        counted = torch.full((1, queries), keys, device=device)
    if counted is not None:
        return torch.minimum(counted.clamp(min=1).to(torch.float32), visible_keys.to(counted.device))
    if chunk is not None:
        visible_keys = (visible_keys - 1) % chunk + 1
    return visible_keys if window is None else visible_keys.clamp(max=window)
