# Copyright 2026 The surgery authors. Licensed under the Apache License, Version 2.0.
"""Softmax attention of heads that have a window and no threshold, by torch's own kernel: plain causal."""

from __future__ import annotations

import torch
from torch import nn

from surgery.operations.screening.modeling.blocks import rows_per_window, slices, take_slices


def attend_within(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, window: int, sinks: int, scale: float
) -> torch.Tensor:
    """Attention to the ``window`` last keys of each query, its own included, and to the first ``sinks`` keys.

    Queries are taken in blocks. All blocks have the same mask, so they go to the kernel together, and so do all heads:
    the query heads of a key-value head as further queries.

    Args:
        query: ``(batch, heads, queries, head_dim)``; a single query follows all keys, several begin so late that keys
            before the first one's window exist: the first query has the number ``window + sinks``.
        key, value: ``(batch, key-value heads, keys, head_dim)``, from the first key of the document on.
        window, sinks: of all heads.
        scale: factor of the scores.

    Returns:
        ``(batch, queries, heads, head_dim)``.
    """
    batch, heads, queries, size = query.shape
    groups, keys = key.shape[1:3]
    each, attend = heads // groups, nn.functional.scaled_dot_product_attention
    if queries == 1:
        near, near_value = (take_slices(one, slices(keys - window, keys, sinks), 2) for one in (key, value))
        return attend(query.view(batch, groups, each, size), near, near_value, scale=scale).reshape(batch, 1, heads, -1)
    side = min(rows_per_window(window), queries)
    count = -(-queries // side)
    width = window + side - 1
    missing = count * side - queries
    packed = nn.functional.pad(query, (0, 0, 0, missing)).view(batch, groups, each, count, side, size)
    packed = packed.permute(0, 3, 1, 2, 4, 5).reshape(batch * count, groups, each * side, size)

    def spread(one: torch.Tensor) -> torch.Tensor:
        """The first keys and those of each block, ``(batch * blocks, key-value heads, sinks + width, head_dim)``."""
        late = nn.functional.pad(one[:, :, sinks + 1 :], (0, 0, 0, missing))
        parts = late.unfold(2, width, side).permute(0, 2, 1, 4, 3)
        first = one[:, None, :, :sinks].expand(-1, count, -1, -1, -1)
        return torch.cat([first, parts], 3).flatten(0, 1)

    distance = torch.arange(side, device=query.device)[:, None] + window - 1 - torch.arange(width, device=query.device)
    allowed = nn.functional.pad((distance >= 0) & (distance < window), (sinks, 0), value=True)
    output = attend(packed, spread(key), spread(value), allowed.repeat(each, 1), scale=scale)
    output = output.view(batch, count, groups * each, side, -1).transpose(2, 3)
    return output.reshape(batch, count * side, heads, -1)[:, :queries]
