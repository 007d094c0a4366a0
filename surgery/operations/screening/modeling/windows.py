# Copyright 2026 The surgery authors. Licensed under the Apache License, Version 2.0.
"""Softmax attention of heads that have a window and no threshold, by torch's own kernel: plain causal."""

from __future__ import annotations

import torch
from torch import nn

from surgery.operations.screening.modeling.blocks import rows_per_window, slices, take_slices

# Elements of the keys of the blocks that go to the kernel together, 16 MiB in float32. Neighbouring blocks share keys,
# so all blocks of a long text at once would hold its keys two to three times.
SPREAD_ELEMENTS = 2**22


def attend_within(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, window: int, sinks: int, scale: float | None
) -> torch.Tensor:
    """Attention to the ``window`` last keys of each query, its own included, and to the first ``sinks`` keys.

    Queries are taken in blocks. All blocks have the same mask, so as many as :data:`SPREAD_ELEMENTS` allows go to the
    kernel together, and so do all heads: the query heads of a key-value head as further queries.

    Args:
        query: ``(batch, heads, queries, head_dim)``, of the last tokens of ``key``. The window of the first one begins
            after the first ``sinks`` keys.
        key, value: ``(batch, key-value heads, keys, head_dim)``: the first keys of the document and, in order, at least
            those in a window.
        window, sinks: of all heads.
        scale: factor of the scores; None for the usual one.

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
    width = window + side - 1
    distance = torch.arange(side, device=query.device)[:, None] + window - 1 - torch.arange(width, device=query.device)
    allowed = nn.functional.pad((distance >= 0) & (distance < window), (sinks, 0), value=True).repeat(each, 1)
    step = side * max(1, SPREAD_ELEMENTS // (batch * groups * (sinks + width) * size))
    outputs = []
    for start in range(0, queries, step):
        stop = min(start + step, queries)
        reached = slice(keys - queries + start - window + 1, keys - queries + stop)
        near, near_value = (_spread(one[:, :, :sinks], one[:, :, reached], side, window) for one in (key, value))
        missing = (start - stop) % side
        packed = nn.functional.pad(query[:, :, start:stop], (0, 0, 0, missing)).unflatten(2, (-1, side))
        packed = packed.unflatten(1, (groups, each)).permute(0, 3, 1, 2, 4, 5).flatten(3, 4).flatten(0, 1)
        output = attend(packed, near, near_value, allowed, scale=scale)
        output = output.unflatten(2, (each, side)).unflatten(0, (batch, -1))
        outputs.append(output.permute(0, 1, 4, 2, 3, 5).flatten(3, 4).flatten(1, 2)[:, : stop - start])
    return torch.cat(outputs, 1)


def _spread(first: torch.Tensor, near: torch.Tensor, side: int, window: int) -> torch.Tensor:
    """The first keys and those of each block of queries, ``(batch * blocks, heads, keys of a block, head_dim)``.

    Args:
        first: the first keys of the document, ``(batch, heads, sinks, head_dim)``.
        near: those in a window of one of the queries, in order, likewise.
        side: queries of a block; the last block may have fewer.
        window: of all heads.
    """
    missing = (window - 1 - near.shape[2]) % side
    blocks = nn.functional.pad(near, (0, 0, 0, missing)).unfold(2, window + side - 1, side).permute(0, 2, 1, 4, 3)
    return torch.cat([first[:, None].expand(-1, blocks.shape[1], -1, -1, -1), blocks], 3).flatten(0, 1)
