# Copyright 2026 The surgery authors. Licensed under the Apache License, Version 2.0.
"""n, the number of keys that a query may attend to."""

from __future__ import annotations

from typing import Any

import torch


def count_visible_keys(
    length: int,
    device: torch.device,
    attention_mask: Any = None,
    position_ids: torch.Tensor | None = None,
    past_length: int | torch.Tensor = 0,
) -> torch.Tensor:
    """Number of keys that each query may attend to, itself included, however the sequence is presented.

    It is the smaller of two numbers: the position in the query's own document plus one, and the number of real keys
    that the mask shows up to the query. Positions of more than two dimensions (M-RoPE) are not counts and are ignored,
    except that of four rows the first holds the positions of the text. Keys after the query that a 4-D mask shows, as
    between the tokens of one image, are counted too.

    Args:
        length: number of queries in this call.
        device: device of the result.
        attention_mask: ``(batch, past + length)`` with 0 for padding, or ``(batch, 1, length, keys)`` (boolean, or
            added to the scores), or a mapping of those by layer type, or None. Masks of other kinds are ignored.
        position_ids: ``(batch or 1, length)``, or None for positions that continue after the cache.
        past_length: number of keys already in the cache.

    Returns:
        ``(batch or 1, length)``, float32, at least 1.
    """
    positions = torch.arange(length, device=device) + past_length
    if position_ids is not None and position_ids.dim() == 3 and position_ids.shape[0] == 4:
        position_ids = position_ids[0]
    if position_ids is not None and position_ids.dim() <= 2:
        visible = position_ids.reshape(-1, length).to(device) + 1
    else:
        visible = positions[None] + 1

    if isinstance(attention_mask, dict):
        attention_mask = attention_mask.get("full_attention", next(iter(attention_mask.values()), None))
    if isinstance(attention_mask, torch.Tensor) and attention_mask.dim() == 2:
        running = attention_mask.to(device).long().cumsum(-1)
        # The mask covers the cache too, and may cover the rest of a static one: pick the columns of these queries.
        columns = positions.clamp(max=running.shape[-1] - 1)
        visible = torch.minimum(visible, running.index_select(-1, columns))
    elif isinstance(attention_mask, torch.Tensor) and attention_mask.dim() == 4:
        allowed = allowed_keys(attention_mask.to(device))[:, 0, -length:]
        beyond = allowed & (torch.arange(allowed.shape[-1], device=device) > positions[:, None])
        visible = torch.minimum(visible, (allowed & ~beyond).sum(-1)) + beyond.sum(-1)
    return visible.clamp(min=1).to(torch.float32)


def allowed_keys(mask: torch.Tensor) -> torch.Tensor:
    """A 4-D mask, boolean or added to the scores, as boolean: which keys a query may attend to."""
    return mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2


def visible_keys_in_chunk(visible_keys: torch.Tensor, chunk: int, attention_mask: Any) -> torch.Tensor:
    """n in a layer with chunked attention, from the n of a layer with full attention.

    transformers starts chunks at the row or at the document, and cuts no mask that the user made. So the layer's own
    mask is counted where there is one.

    Args:
        visible_keys: ``(batch or 1, queries)``.
        chunk: keys in a chunk.
        attention_mask: of the layer: ``(batch or 1, 1, queries, keys)``, or of another kind, or None.
    """
    if isinstance(attention_mask, torch.Tensor) and attention_mask.dim() == 4:
        return allowed_keys(attention_mask)[:, 0].sum(-1).clamp(min=1).to(torch.float32)
    return (visible_keys - 1) % chunk + 1
