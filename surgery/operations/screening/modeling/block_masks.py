# Copyright 2026 The surgery authors. Licensed under the Apache License, Version 2.0.
"""Block masks of FlexAttention: what they allow, and the same masks without the blocks outside all windows."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from surgery.operations.screening.modeling.blocks import rows_per_block


def require_block_mask(mask: Any) -> Any:
    """The mask, if it is a block mask; without one FlexAttention attends to every key."""
    from torch.nn.attention.flex_attention import BlockMask

    if not isinstance(mask, BlockMask):
        raise ValueError(f"screening in FlexAttention needs its block mask, not {type(mask).__name__}")
    return mask


def dense_mask(block_mask: Any, queries: int, keys: int) -> torch.Tensor:
    """Which keys each query may attend to, ``(batch or 1, 1, queries, keys)``; the same for all heads."""
    mask_mod, device = require_block_mask(block_mask).mask_mod, block_mask.kv_num_blocks.device
    rows, columns = torch.arange(len(block_mask.kv_num_blocks), device=device), torch.arange(keys, device=device)
    numbers = torch.arange(queries, device=device)
    seen = mask_mod(rows[:, None, None], torch.zeros_like(rows[:1]), numbers[:, None], columns)
    return seen.expand(len(rows), queries, keys)[:, None]


def places_of_keys(block_mask: Any, places: torch.Tensor, keys: int) -> torch.Tensor:
    """Place in its document of every key of a cache, from 0, ``(batch, keys)``; that of the queries is ``places``.

    A key is real where any of the queries may attend to it. The last of them follows all real keys.
    """
    batch, queries = places.shape
    rows, columns = torch.arange(batch, device=places.device), torch.arange(keys, device=places.device)
    real = torch.zeros(batch, keys, dtype=torch.bool, device=places.device)
    numbers = torch.arange(queries, device=places.device)
    for part in numbers.split(rows_per_block(batch * keys)):
        seen = block_mask.mask_mod(rows[:, None, None], torch.zeros_like(rows[:1]), part[:, None], columns)
        real |= seen.expand(batch, len(part), keys).any(1)
    running = real.cumsum(-1)
    return places[:, -1:] - (running[:, -1:] - running)


def within_windows(
    block_mask: Any,
    places: torch.Tensor,
    key_places: torch.Tensor,
    windows: torch.Tensor,
    sinks: int,
    lengths: tuple[int, ...],
    extra_key: bool = False,
    backward: bool = False,
) -> Any:
    """A block mask per head without the blocks that hold neither a key inside the head's window nor a first key.

    Args:
        block_mask: what each query may attend to.
        places, key_places: of the queries and keys in their documents, ``(batch, queries)`` and ``(batch, keys)``.
        windows: of each head, infinite for none.
        sinks: number of first keys that are always kept.
        lengths: of queries and keys, whole blocks where those of ``places`` and ``key_places`` are not; nobody may
            attend to what is more.
        extra_key: whether every query attends to the first key after those of ``key_places``.
        backward: whether the kernel will run backward, which goes by blocks of keys.
    """
    side, key_side = block_mask.BLOCK_SIZE
    queries, keys = places.shape[-1], key_places.shape[-1]

    def extreme(values: torch.Tensor, length: int, least: bool) -> torch.Tensor:
        filler = torch.inf if least else -torch.inf
        blocks = nn.functional.pad(values, (0, -values.shape[-1] % length), value=filler)
        blocks = blocks.view(len(values), -1, length)
        return blocks.amin(-1) if least else blocks.amax(-1)

    nearest = extreme(places, side, True)[:, :, None] - extreme(key_places, key_side, False)[:, None]
    first = (extreme(key_places, key_side, True) < sinks)[:, None, None]
    given = block_mask.to_dense()[..., : nearest.shape[1], : nearest.shape[2]] > 0
    kept = given & (first | (nearest[:, None] < windows[:, None, None]))
    more = (
        -(-length // one) - there for length, one, there in zip(lengths, (side, key_side), kept.shape[2:], strict=True)
    )
    more_rows, more_columns = more
    kept = nn.functional.pad(kept, (0, more_columns, 0, more_rows))
    if extra_key:
        kept[..., keys // key_side] = True
    order = kept.int().argsort(dim=-1, descending=True, stable=True).int().contiguous()
    counts = kept.sum(-1, dtype=torch.int32).contiguous()
    mask_mod = block_mask.mask_mod

    def inside(b: Any, h: Any, i: Any, j: Any) -> Any:
        here = mask_mod(b, h, i.clamp(max=queries - 1), j.clamp(max=keys - 1)) & (i < queries) & (j < keys)
        return here | (j == keys) if extra_key else here

    return type(block_mask).from_kv_blocks(
        counts,
        order,
        # None is full in the sense that its mask need not be looked at. The kernel for CPUs wants to be told so.
        torch.zeros_like(counts),
        torch.zeros_like(order),
        BLOCK_SIZE=block_mask.BLOCK_SIZE,
        mask_mod=mask_mod if lengths == (queries, keys) else inside,
        seq_lengths=lengths,
        compute_q_blocks=backward,
    )
