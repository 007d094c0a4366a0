# Copyright 2026 The surgery authors. Licensed under the Apache License, Version 2.0.
"""Blocks of queries, and where the keys of each lie."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch

from surgery.runtime.visible_keys import allowed_keys

# Elements of one (batch, heads, queries, keys) block, 2 MiB in float32: queries are taken in blocks of that size.
BLOCK_ELEMENTS = 2**19


def rows_per_block(elements: int) -> int:
    """Queries in a block if each query takes ``elements`` elements; at least one."""
    return max(1, BLOCK_ELEMENTS // elements)


def rows_per_window(window: int) -> int:
    """Queries in a block with this window: the keys reach from the first query's window to the last query."""
    return max(64, window // 2)


def locate_keys(
    attention_mask: torch.Tensor | None, visible_keys: torch.Tensor, rows: torch.Tensor, keys: int, queries: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Where the keys of a block of queries are, however the sequence is presented.

    The distance of a key is the number of allowed keys after it, up to the query; its place in the document follows
    from n, the number of keys that the query may attend to. So padding, packing and caches of every kind agree.

    Args:
        attention_mask: ``(batch or 1, 1, queries, keys)``, boolean or added to the scores, or None: plain causal.
        visible_keys: n of every query, ``(batch or 1, queries)``.
        rows: numbers of the block's queries.
        keys, queries: how many there are in all.

    Returns:
        distance, allowed, and the place in the document from 0, each ``(batch or 1, 1, rows, keys)``.
    """
    if attention_mask is None:
        # One query follows all keys of its cache. Several begin at the first key, as in sdpa's is_causal.
        position = rows + (keys - 1 if queries == 1 else 0)
        distance = (position[:, None] - torch.arange(keys, device=rows.device))[None, None]
        allowed = distance >= 0
    else:
        allowed = allowed_keys(attention_mask[:, :, rows, :keys])
        running = allowed.cumsum(-1, dtype=torch.int32)
        distance = running[..., -1:] - running
    place = visible_keys[:, None, rows, None].to(distance.dtype) - 1 - distance
    return distance, allowed, place


class Block(NamedTuple):
    """A block of queries and where their keys are: see :class:`Observation`.

    ``keys`` is the number of keys that it needs: without a mask, keys after its last query are left out.
    ``bias`` is what a mask adds to the scores; None if there is only ``allowed``.
    """

    rows: torch.Tensor
    keys: int
    distance: torch.Tensor
    allowed: torch.Tensor
    sinks: torch.Tensor
    bias: torch.Tensor | None = None

    def within(self, window: int) -> Block:
        """The same block with only the keys allowed that are inside the window, or the first of their document."""
        return self._replace(allowed=self.allowed & ((self.distance < window) | self.sinks))

    def at(self, columns: torch.Tensor) -> Block:
        """The same queries with the keys of ``columns`` alone, ``(batch or 1, keys)``; -1 stands for no key."""
        rows = max(len(columns), len(self.allowed))
        index = columns.clamp(min=0)[:, None, None].expand(rows, 1, len(self.rows), -1)

        def taken(values: torch.Tensor) -> torch.Tensor:
            return values.expand(rows, *values.shape[1:]).gather(-1, index)

        allowed = taken(self.allowed) & (columns >= 0)[:, None, None]
        bias = None if self.bias is None else taken(self.bias)
        return Block(self.rows, columns.shape[-1], taken(self.distance), allowed, taken(self.sinks), bias)


def blocks(
    sinks: int,
    query: torch.Tensor,
    keys: int,
    attention_mask: torch.Tensor | None,
    visible_keys: torch.Tensor,
    rows: torch.Tensor | None = None,
    whole: bool = False,
    window: int | None = None,
) -> Iterator[Block]:
    """Blocks of queries, in order, so small that :data:`BLOCK_ELEMENTS` bounds memory.

    ``whole``: with all keys. ``window``: of the queries; blocks much longer than it would hold many keys in vain.
    """
    batch, heads, queries, _ = query.shape
    everything = torch.arange(queries) if rows is None else rows.cpu()
    rows_of_one = rows_per_block(batch * heads * keys)
    if window is not None:
        rows_of_one = min(rows_of_one, rows_per_window(window))
    for numbers in everything.split(rows_of_one):
        present = int(numbers[-1]) + 1 if attention_mask is None and queries > 1 and not whole else keys
        block = numbers.to(query.device)
        distance, allowed, place = locate_keys(attention_mask, visible_keys, block, present, queries)
        bias = None
        if attention_mask is not None and attention_mask.dtype != torch.bool:
            bias = attention_mask[:, :, block, :present]
        yield Block(block, present, distance, allowed, (place >= 0) & (place < sinks), bias)


def slices(first: int, last: int, sinks: int) -> list[slice]:
    """The keys from ``first`` to before ``last``, and the first ones of all."""
    if first <= sinks:
        return [slice(0, last)]
    return [slice(0, sinks), slice(first, last)] if sinks else [slice(first, last)]


def pieces(tensor: torch.Tensor, chosen: list[slice], dimension: int) -> list[torch.Tensor]:
    """Slices of a tensor, as views."""
    return [tensor.narrow(dimension, part.start, part.stop - part.start) for part in chosen]


def take_slices(tensor: torch.Tensor, chosen: list[slice], dimension: int) -> torch.Tensor:
    """Slices of a tensor, one after the other; a view if there is one slice."""
    parts = pieces(tensor, chosen, dimension)
    return parts[0] if len(parts) == 1 else torch.cat(parts, dimension)


def take_heads(tensor: torch.Tensor, heads: list[int]) -> torch.Tensor:
    """Some heads of ``(batch, heads, ...)``, in rising order; a view if they lie beside each other."""
    if heads[-1] - heads[0] == len(heads) - 1:
        return tensor.narrow(1, heads[0], len(heads))
    return tensor[:, heads]
