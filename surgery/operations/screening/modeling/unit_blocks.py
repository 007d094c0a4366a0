# Copyright 2026 The surgery authors. Licensed under the Apache License, Version 2.0.
"""Screening units with gradients or with a mask: blocks of queries, and the keys that their windows reach."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch

from surgery.operations.screening.modeling.acceptance import Acceptance
from surgery.operations.screening.modeling.bands import parts
from surgery.operations.screening.modeling.blocks import Block, blocks, rows_per_block, rows_per_window, take_slices
from surgery.operations.screening.modeling.reference import dense_block, recomputed
from surgery.runtime.operation import AttentionCall


def attend_with_units(screening: Acceptance, call: AttentionCall) -> torch.Tensor:
    """Units by the reference, without keys outside the windows: ``(batch, queries, heads, head_dim)``.

    A unit has no gradient beyond its window, so nothing is lost. No matrix of queries and keys is kept, because the
    backward pass computes each block again. Where rejected keys are counted, keys up to twice as far as the window
    move it (:meth:`Acceptance.count_rejected`). They are computed too, and keys beyond them are only counted.
    """
    query, key, value = call.unscaled_query, call.key, call.value
    each = query.shape[1] // key.shape[1]
    counts = screening.counter is not None and screening.learns()
    heads: list[int] = []
    outputs, rejected = [], []
    keys = 0
    for band in screening.bands(key.shape[1]):
        members = torch.tensor(band.members(each), device=query.device)
        q, k, v = query, key, value
        if len(members) < query.shape[1]:
            q, k, v = query[:, members], key[:, band.groups], value[:, band.groups]
        reach = 2 * band.window + 1 if band.window is not None and counts else band.window
        of_band, counted, keys = [], torch.zeros(len(members), device=query.device), 0
        for block, near, near_value, left_out in _near_blocks(screening.sinks, call, q, k, v, reach):
            rows = q[:, :, block.rows]
            output, _, found = recomputed(dense_block, call, block, rows, rows, near, near_value, members)
            of_band.append(output)
            if found is not None:
                copies = len(query) // len(block.allowed)  # a mask of one row stands for every row of the batch
                counted = counted + found + left_out * copies
                keys += (int(block.allowed.sum()) + left_out) * copies
        heads += members.tolist()
        outputs.append(torch.cat(of_band, 1))
        rejected.append(counted)
    order = torch.tensor(heads, device=query.device).argsort()
    if screening.counter is not None and counts:
        screening.counter(torch.cat(rejected)[order], keys)
    output = outputs[0] if len(outputs) == 1 else torch.cat(outputs, 2)[:, :, order]
    return output.contiguous()


class _Near(NamedTuple):
    """A block of queries with the keys that are computed for it, and how many allowed keys are left out."""

    block: Block
    key: torch.Tensor
    value: torch.Tensor
    left_out: int


def _near_blocks(
    sinks: int, call: AttentionCall, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, reach: int | None
) -> Iterator[_Near]:
    """Blocks of the queries of some heads, in order; ``reach``: how many keys back they look, None for all."""
    batch, heads, queries, _ = query.shape
    keys, mask, visible_keys = key.shape[2], call.attention_mask, call.visible_keys
    if mask is None:
        offset = keys - queries
        for part in parts(query, keys, reach, 0):
            rows = torch.arange(part.queries.start, part.queries.stop, device=query.device)
            near, near_value = (take_slices(tensor, part.keys, 2) for tensor in (key, value))
            distance = part.distance[None, None]
            place = visible_keys[:, None, rows, None].to(distance.dtype) - 1 - distance
            allowed, first = (distance >= 0).expand_as(place), (place >= 0) & (place < sinks)
            left_out = int((rows + offset + 1).sum()) * len(allowed) - int(allowed.sum())
            yield _Near(Block(rows, near.shape[2], distance, allowed, first), near, near_value, left_out)
        return
    step = rows_per_block(batch * heads * (keys if reach is None else min(keys, 2 * reach)))
    if reach is not None:
        step = min(step, rows_per_window(reach))
    for numbers in torch.arange(queries).split(step):
        for block in blocks(sinks, query[:, :1], keys, mask, visible_keys, numbers):
            if reach is None:
                yield _Near(block, key[:, :, : block.keys], value[:, :, : block.keys], 0)
                continue
            within = block.allowed & (block.distance < reach)
            columns = within.flatten(0, -2).any(0).nonzero().flatten()
            narrowed = block._replace(
                keys=len(columns),
                distance=block.distance[..., columns],
                allowed=block.allowed[..., columns],
                sinks=block.sinks[..., columns],
                bias=None,  # a unit has no scores that a mask could be added to
            )
            left_out = int(block.allowed.sum()) - int(narrowed.allowed.sum())
            yield _Near(narrowed, key[:, :, columns], value[:, :, columns], left_out)
