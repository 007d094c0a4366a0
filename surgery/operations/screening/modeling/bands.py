# Copyright 2026 The surgery authors. Licensed under the Apache License, Version 2.0.
"""Screened attention that never touches keys outside the windows: for inference without a mask."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import nn

from surgery.operations.screening.modeling.acceptance import Acceptance, Band
from surgery.operations.screening.modeling.blocks import rows_per_block, rows_per_window, slices, take_slices
from surgery.operations.screening.modeling.gradients import HARD
from surgery.operations.screening.modeling.windows import attend_within
from surgery.runtime.operation import AttentionCall


def attend_in_bands(screening: Acceptance, call: AttentionCall) -> torch.Tensor:
    """Attention without a mask, in which each head is given only the keys that its window reaches, and the first ones.

    Keys outside the windows of all query heads of a key-value head are never touched, so time falls with the share of
    keys that are left. Open heads go to the backend whole, as without screening. For inference, and for layers whose
    heads all have softmax or all have none.
    """
    query, key, value = call.query, call.key, call.value
    batch, heads, queries, _ = query.shape
    scaling = call.options.get("scaling")
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    bands = screening.bands(key.shape[1])
    in_order = not screening.sinks or follow_the_first_key(call.visible_keys, queries, key.shape[2])
    output = query.new_empty(batch, queries, heads, value.shape[-1])
    for band in bands:
        members = torch.tensor(band.members(heads // key.shape[1]), device=query.device)
        q, k, v = query, key, value
        if len(bands) > 1:
            q, k, v = query[:, members], key[:, band.groups], value[:, band.groups]
        if screening.kind() == "gated" and band.accepting and band.same and (band.window is None or in_order):
            output[:, :, members] = attend_accepting(call, q, k, v, band.window, screening.sinks)
            continue
        raw = call.unscaled_query[:, members].float()
        if screening.kind() == "unit":
            _band_of_units(screening, band, members, raw, k.float(), v.float(), output)
        else:
            # z = rho |k| times this: the length of the raw query, the operations' multiplier and the usual scale.
            stretch = (q.float() * raw).sum(-1, keepdim=True) / raw.norm(dim=-1, keepdim=True).clamp(min=1e-12) * scale
            _band(screening, band, members, raw, stretch, k.float(), v.float(), call.visible_keys, output)
    return output


def follow_the_first_key(visible_keys: torch.Tensor, queries: int, keys: int) -> bool:
    """Whether the first key of every row begins its document, so that the first keys lie at the front."""
    expected = torch.arange(keys - queries + 1, keys + 1, device=visible_keys.device)
    return bool((visible_keys == expected).all())


def attend_accepting(
    call: AttentionCall, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, window: int | None, sinks: int
) -> torch.Tensor:
    """Heads without thresholds and with one window, without padding: ``(batch, queries, heads, head_dim)``.

    Those without a window, and the queries that see all keys before them, go to the backend as without screening.

    Args:
        call: for the backend; the tensors are those of these heads.
        query: ``(batch, heads, queries, head_dim)``, of the last tokens of ``key``.
        key, value: ``(batch, key-value heads, keys, head_dim)``: the first keys of the document and, in order, at least
            those in a window.
        window, sinks: of all heads.
    """
    queries, keys = query.shape[2], key.shape[2]
    before = keys - queries
    early = queries if window is None else min(queries, max(0, window + sinks - before))
    outputs = []
    if early:
        seen = before + early
        # Without a mask the kernel takes the first query for one of the first key.
        cached = before > 0 and queries > 1
        mask = torch.ones(1, 1, early, seen, dtype=torch.bool, device=query.device).tril(before) if cached else None
        tensors = (query[:, :, :early], key[:, :, :seen], value[:, :, :seen])
        outputs.append(call.backend(call.module, *tensors, mask, **call.options)[0])
    if window is not None and early < queries:
        outputs.append(attend_within(query[:, :, early:], key, value, window, sinks, call.options.get("scaling")))
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, 1)


class Part(NamedTuple):
    """Some queries of a band, and their keys.

    Attributes:
        queries: which queries.
        keys: which keys, one or two slices.
        distance: from each query to each key, ``(queries, keys)``; negative where a key comes after the query.
        later: from this column on, some keys come after the query.
    """

    queries: slice
    keys: list[slice]
    distance: torch.Tensor
    later: torch.Tensor


def parts(query: torch.Tensor, keys: int, window: int | None, sinks: int) -> Iterator[Part]:
    """The queries ``(batch, heads, queries, head_dim)`` of a band in parts that fit a processor's cache."""
    batch, count, queries, _ = query.shape
    # Several queries begin at the first key; a single one follows all keys of its cache.
    offset = keys - 1 if queries == 1 else 0
    reach = keys if window is None else min(keys, window + sinks)
    step = min(queries, rows_per_block(batch * count * reach))
    if window is not None:
        step = min(step, rows_per_window(window))
    for start in range(0, queries, step):
        stop = min(start + step, queries)
        first, last = 0 if window is None else start + offset - window + 1, stop + offset
        chosen = slices(first, last, sinks)
        numbers = torch.cat([torch.arange(part.start, part.stop, device=query.device) for part in chosen])
        distance = torch.arange(start, stop, device=query.device)[:, None] + offset - numbers
        yield Part(slice(start, stop), chosen, distance, (numbers <= start + offset).sum())


def _band_of_units(
    screening: Acceptance,
    band: Band,
    members: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    output: torch.Tensor,
) -> None:
    """The heads of one band without softmax, written into ``output``; arguments as of :func:`_band`."""
    threshold, _, log2_window = (value[members] for value in screening.of_all_heads())
    windowed = bool((screening.windows_of(log2_window) < screening.full_window).any())
    if bool((log2_window == log2_window[0]).all()):
        log2_window = log2_window[:1]  # one mask for all heads
    query, key = (nn.functional.normalize(one, dim=-1) for one in (query, key))
    groups, slope = key.shape[1], 1 / (1 - threshold).clamp(min=HARD)
    for part in parts(query, key.shape[2], band.window, 0):
        near, near_value = (take_slices(tensor, part.keys, 2) for tensor in (key, value))
        packed = query[:, :, part.queries]
        shape = (*packed.shape[:3], near.shape[2])
        alpha = (packed.reshape(shape[0], groups, -1, query.shape[-1]) @ near.transpose(-1, -2)).view(shape)
        alpha.sub_(threshold).mul_(slope).clamp_(0, 1)
        alpha.mul_(alpha)
        if windowed:
            alpha.mul_(screening.fading(part.distance, log2_window))
        alpha[..., part.later :].masked_fill_(part.distance[:, part.later :] < 0, 0.0)
        summed = (alpha.view(shape[0], groups, -1, shape[3]) @ near_value).view(*shape[:3], -1)
        output[:, part.queries, members] = screening.finish(summed, members).transpose(1, 2).to(output.dtype)


def _band(
    screening: Acceptance,
    band: Band,
    members: torch.Tensor,
    query: torch.Tensor,
    stretch: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    visible_keys: torch.Tensor,
    output: torch.Tensor,
) -> None:
    """The heads of one band, written into ``output``. One product of matrices gives both the relevance and the scores.

    Passes over the matrix of all pairs are the cost of screening beyond softmax. So they run in place, in blocks that
    fit a processor's cache.

    Args:
        screening, band: what is accepted, and how far back the keys reach.
        members: numbers of the query heads.
        query: of these heads, unscaled, ``(batch, heads, queries, head_dim)``, float32.
        stretch: factor that turns a relevance and the length of its key into a score, ``(batch, heads, queries, 1)``.
        key, value: of the band's key-value heads, float32.
        visible_keys: n of each query.
        output: ``(batch, queries, all heads, head_dim)``.
    """
    threshold, softness, log2_window = (value[members] for value in screening.of_all_heads())
    slope = 1 / softness.clamp(min=HARD)
    windowed = bool((screening.windows_of(log2_window) < screening.full_window).any())
    if bool((log2_window == log2_window[0]).all()):
        log2_window = log2_window[:1]  # one mask for all heads
    batch, count, _, size = query.shape
    groups, sinks = key.shape[1], screening.sinks
    query = nn.functional.normalize(query, dim=-1)
    length = key.norm(dim=-1).unsqueeze(2).clamp(min=1e-12)
    key = key / length.transpose(-1, -2)
    for part in parts(query, key.shape[2], band.window, sinks):
        rows, distance, later = part.queries, part.distance, part.later
        near, near_value = (take_slices(tensor, part.keys, 2) for tensor in (key, value))
        near_length = take_slices(length, part.keys, 3)
        shape = (batch, count, *distance.shape)
        packed = query[:, :, rows].reshape(batch, groups, -1, size)
        relevance = packed @ near.transpose(-1, -2)
        weights = (relevance * near_length).view(shape)
        weights.mul_(stretch[:, :, rows])
        relevance = relevance.view(shape)
        if not band.accepting:
            relevance.sub_(threshold).mul_(slope).clamp_(0, 1)
            relevance.mul_(relevance)
        else:
            relevance.fill_(1.0)
        if windowed:
            relevance.mul_(screening.inside(distance, log2_window).to(relevance.dtype))
        # Which keys are the first of the document: at the front, unless positions say that they have left the cache.
        place = visible_keys[:, None, rows, None].to(distance.dtype) - 1 - distance[:, :sinks]
        relevance[..., :sinks].masked_fill_((place >= 0) & (place < sinks) & (distance[:, :sinks] >= 0), 1.0)
        hidden = distance[:, later:] < 0
        relevance[..., later:].masked_fill_(hidden, 0.0)
        weights[..., later:].masked_fill_(hidden, -torch.inf)
        weights.sub_(weights.amax(-1, keepdim=True)).exp_().mul_(relevance)
        total = weights.sum(-1, keepdim=True)
        summed = (weights.view(batch, groups, -1, shape[3]) @ near_value).view(*shape[:3], -1)
        summed = summed / torch.where(total > 0, total, torch.ones_like(total))
        output[:, rows, members] = summed.transpose(1, 2).to(output.dtype)
