# Copyright 2026 The surgery authors. Licensed under the Apache License, Version 2.0.
"""Attention over the keys that a windowed cache keeps."""

from __future__ import annotations

import torch

from surgery.operations.screening.modeling.acceptance import Acceptance, Reach
from surgery.operations.screening.modeling.attention import (
    PATHS,
    dense_block,
    masked_block,
    no_mask_message,
    screening_of,
    windowed_block,
    without_empty_keys,
)
from surgery.operations.screening.modeling.blocks import blocks, take_heads
from surgery.operations.screening.modeling.cache import KeyGroup, WindowedKeys
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
    each = query.shape[1] // key.shape[1]
    single = key.plain and call.attention_mask is None and query.shape[2] == 1
    rest, parts = [], []
    for group in key.groups:
        if dense or not _sees_all(group, reach, single):
            rest.append((group, not dense and _has_a_window_alone(group, reach)))
            continue
        members = _members(group, each)
        # Of an open group the mask, if any, holds; of others there is none.
        tensors = (take_heads(query, members), group.keys, group.values)
        parts.append((members, call.backend(call.module, *tensors, call.attention_mask, **call.options)[0]))
    if len(key.groups) == len(parts) == 1:
        return parts[0][1], None
    output = query.new_empty(query.shape[0], query.shape[2], query.shape[1], call.value.shape[-1])
    for members, part in parts:
        output[:, :, members] = part
    if rest:
        _attend_in_blocks(call, rest, dense, output)
    return output, None


def _sees_all(group: KeyGroup, reach: Reach, single: bool) -> bool:
    """Whether every query may attend to every key of a group that the mask allows.

    So it is in an open group. With a window it is so for a ``single`` query without a mask.
    """
    if group.window is None:
        return all(reach.accepting[number] for number in group.heads)
    return single and _has_a_window_alone(group, reach)


def _has_a_window_alone(group: KeyGroup, reach: Reach) -> bool:
    """Whether no query head of a group has a threshold, and none looks less far than the group."""
    return all(
        reach.accepting[number] and reach.same[number] and reach.windows[number] == group.window
        for number in group.heads
    )


def _members(group: KeyGroup, each: int) -> list[int]:
    return [number * each + head for number in group.heads for head in range(each)]


def _attend_in_blocks(
    call: AttentionCall, groups: list[tuple[KeyGroup, bool]], dense: bool, output: torch.Tensor
) -> None:
    """The query heads of ``groups``, written into ``output`` ``(batch, queries, heads, head_dim)``.

    With each group: whether it has a window alone, without thresholds.
    """
    query, key, mask = call.query, call.key, call.attention_mask
    each = query.shape[1] // key.shape[1]
    for block in blocks(screening_of(call).sinks, query, key.shape[2], mask, call.visible_keys, whole=True):
        for group, alone in groups:
            members = torch.tensor(_members(group, each), device=query.device)
            q, unscaled = (one[:, members][:, :, block.rows] for one in (query, call.unscaled_query))
            located = block if group.window is None else block.at(group.columns)
            tensors = (located, q, unscaled, group.keys, group.values, members)
            if alone and group.window is not None and block.bias is None:
                part = windowed_block(call, located.within(group.window), q, group.keys, group.values)
            else:
                part = dense_block(call, *tensors)[0] if dense else masked_block(call, *tensors)
            output[:, block.rows[:, None], members] = part
