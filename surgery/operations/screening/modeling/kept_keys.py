# Copyright 2026 The surgery authors. Licensed under the Apache License, Version 2.0.
"""Attention over the keys that a windowed cache keeps."""

from __future__ import annotations

import torch
from torch import nn

from surgery.operations.screening.modeling.acceptance import Acceptance, Reach
from surgery.operations.screening.modeling.attention import (
    ADDITIONS,
    PATHS,
    masked_block,
    no_mask_message,
    windowed_block,
    without_empty_keys,
)
from surgery.operations.screening.modeling.bands import attend_accepting
from surgery.operations.screening.modeling.blocks import blocks, take_heads
from surgery.operations.screening.modeling.cache import WindowedKeys
from surgery.operations.screening.modeling.key_store import KeyGroup
from surgery.operations.screening.modeling.reference import dense_block, screening_of
from surgery.runtime.operation import AttentionCall


def attend_to_cached_keys(screening: Acceptance, call: AttentionCall) -> tuple[torch.Tensor, None]:
    """Attention over the keys that a ``WindowedLayer`` holds; ``call.key`` is a ``WindowedKeys``."""
    if not screening.enabled or screening.observer is not None or screening.counter is not None:
        raise ValueError(
            "a windowed cache no longer holds all keys, but attention without screening and counting need them"
        )
    name, key, query = call.name, call.key, call.query
    assert isinstance(key, WindowedKeys)
    reach = screening.reach(key.shape[1])
    for group in key.groups:
        needed = [reach.windows[number] for number in group.heads]
        if group.window is not None and any(window is None or window > group.window for window in needed):
            raise ValueError("windows have grown since this windowed cache was made: create a new one")
    if name not in ("sdpa", "eager"):
        raise ValueError(no_mask_message(name))
    kind = screening.kind()
    screening.path = f"{name if kind == 'gated' else PATHS[kind]} with kept keys"
    dense = call.backend is call.eager or kind != "gated"
    if call.attention_mask is not None:
        without_empty_keys(call._replace(query=query[:, :, :1]))  # refuses masks of other kinds
    parts: dict[int, torch.Tensor] = {}  # number of the group -> ``(batch, queries, heads, head_dim)``
    rest = []
    for number, group in enumerate(key.groups):
        alone = not dense and _is_alone(group, reach)
        part = _whole_group(call, group, key, screening.sinks) if alone else None
        if part is None:
            rest.append((group, alone))
        else:
            parts[number] = part
    if not rest and [head for group in key.groups for head in group.heads] == list(range(key.shape[1])):
        return torch.cat(list(parts.values()), 2) if len(parts) > 1 else parts[0], None
    output = query.new_empty(query.shape[0], query.shape[2], query.shape[1], call.value.shape[-1])
    each = query.shape[1] // key.shape[1]
    for number, part in parts.items():
        output[:, :, _members(key.groups[number], each)] = part
    if rest:
        _attend_in_blocks(call, rest, dense, output)
    return output, None


def _whole_group(call: AttentionCall, group: KeyGroup, key: WindowedKeys, sinks: int) -> torch.Tensor | None:
    """A group without thresholds, ``(batch, queries, heads, head_dim)``; None where it needs blocks of queries."""
    if key.exact:
        return _one_query(call, group, key.plain)
    if group.window is None:
        # Of an open group the mask, if any, holds; of others there is none.
        tensors = (_queries(call, group), group.keys, group.values)
        output: torch.Tensor = call.backend(call.module, *tensors, call.attention_mask, **call.options)[0]
        return output
    if key.plain and not _unusual(call):
        return attend_accepting(call, _queries(call, group), group.keys, group.values, group.window, sinks)
    return None


def _one_query(call: AttentionCall, group: KeyGroup, plain: bool) -> torch.Tensor:
    """One query a row of a group whose real keys are all seen, ``(batch, 1, heads, head_dim)``."""
    query = _queries(call, group)
    mask = None if plain else (group.columns >= 0)[:, None, None]
    if _unusual(call):
        return call.backend(call.module, query, group.keys, group.values, mask, **call.options)[0]
    # The query heads of a key-value head as further queries: so the kernel reads its keys once, and none is repeated.
    batch, heads, _, size = query.shape
    folded = query.reshape(batch, len(group.heads), -1, size)
    scale = call.options.get("scaling")
    output = nn.functional.scaled_dot_product_attention(folded, group.keys, group.values, mask, scale=scale)
    return output.reshape(batch, 1, heads, -1)


def _unusual(call: AttentionCall) -> bool:
    """Whether anything but torch's kernel must run: another backend, or a family that adds something to the scores."""
    return call.name != "sdpa" or any(call.options.get(word) is not None for word in ADDITIONS)


def _is_alone(group: KeyGroup, reach: Reach) -> bool:
    """Whether no query head of a group has a threshold, and none looks less far than the group."""
    return all(
        reach.accepting[number] and reach.same[number] and reach.windows[number] == group.window
        for number in group.heads
    )


def _members(group: KeyGroup, each: int) -> list[int]:
    return [number * each + head for number in group.heads for head in range(each)]


def _queries(call: AttentionCall, group: KeyGroup) -> torch.Tensor:
    """The queries of a group's query heads, ``(batch, heads, queries, head_dim)``."""
    return take_heads(call.query, _members(group, call.query.shape[1] // call.key.shape[1]))


def _attend_in_blocks(
    call: AttentionCall, groups: list[tuple[KeyGroup, bool]], dense: bool, output: torch.Tensor
) -> None:
    """The query heads of ``groups``, written into ``output`` ``(batch, queries, heads, head_dim)``.

    With each group: whether it has a window alone, without thresholds.
    """
    query, key, mask = call.query, call.key, call.attention_mask
    each, sinks = query.shape[1] // key.shape[1], screening_of(call).sinks
    for group, alone in groups:
        members = torch.tensor(_members(group, each), device=query.device)
        window = group.window if alone and (mask is None or mask.dtype == torch.bool) else None
        # Of a window alone no matrix of all heads is formed, so its blocks are those of a single head.
        counted = query if window is None else query[:, :1]
        for block in blocks(sinks, counted, key.shape[2], mask, call.visible_keys, whole=True, window=window):
            placed = block if group.window is None else block.at(group.columns)
            rows = query[:, members[:, None], block.rows]
            if window is not None:
                part = windowed_block(call, placed.within(window), rows, group.keys, group.values)
            else:
                unscaled = call.unscaled_query[:, members[:, None], block.rows]
                tensors = (placed, rows, unscaled, group.keys, group.values, members)
                part = dense_block(call, *tensors)[0] if dense else masked_block(call, *tensors)
            output[:, block.rows[:, None], members] = part
