# Copyright 2026 The surgery authors. Licensed under the Apache License, Version 2.0.
"""Screened attention in torch's FlexAttention: for inference."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from surgery.operations.screening.modeling.acceptance import Acceptance
from surgery.operations.screening.modeling.blocks import rows_per_block
from surgery.operations.screening.modeling.gradients import HARD
from surgery.runtime.operation import CHUNK, AttentionCall


def attend_in_flex(screening: Acceptance, call: AttentionCall) -> torch.Tensor:
    """Screening as a modification of FlexAttention's scores, and a block mask without the blocks outside all windows.

    The products are those of the raw query and key, so their precision is the backend's own; the relevance and the
    scores follow from them and the lengths of both. For inference.
    """
    from transformers.integrations import flex_attention

    _, _, _, module, query, unscaled_query, key, value, attention_mask, visible_keys, _, kwargs = call
    unusual = [word for word in ("position_bias", "s_aux") if kwargs.get(word) is not None]
    if unusual or (torch.is_grad_enabled() and (query.requires_grad or key.requires_grad or value.requires_grad)):
        why = f"with {unusual[0]}" if unusual else "where gradients are to flow through it"
        raise ValueError(
            f'screening does not run in FlexAttention {why}: use attn_implementation="eager", or "sdpa" if the family '
            "has it."
        )
    if not isinstance(attention_mask, flex_attention.BlockMask):
        raise ValueError(f"screening in FlexAttention needs its block mask, not {type(attention_mask).__name__}")
    batch, heads, queries, size = query.shape
    keys, each, sinks = key.shape[2], heads // key.shape[1], screening.sinks
    places = (visible_keys - 1).expand(batch, queries)
    key_places = places if keys == queries else _places(attention_mask, places, keys)
    if getattr(module, CHUNK, None) is not None:  # counted back from the last query, over the beginning of its chunk
        key_places = key_places % getattr(module, CHUNK)
    threshold, softness, log2_window = (one.flatten() for one in screening.of_all_heads())
    windows = screening.windows_of(log2_window)
    windows = windows.masked_fill(windows >= screening.full_window, torch.inf)
    slope = 1 / softness.clamp(min=HARD)
    raw = unscaled_query.float()
    square = raw.square().sum(-1).clamp(min=1e-24)
    scale = kwargs["scaling"] if kwargs.get("scaling") is not None else size**-0.5
    stretch = (query.float() * raw).sum(-1) / square * scale  # the operations' multiplier and the usual scale
    of_query, of_key = square.rsqrt(), key.float().norm(dim=-1).clamp(min=1e-12).reciprocal()
    softcap = kwargs.get("softcap")
    lengths: tuple[int, ...] = (queries, keys)
    kernel: Callable[..., Any] = functools.partial(
        flex_attention.compile_friendly_flex_attention, training=module.training
    )
    if query.device.type == "cpu":
        # torch's kernel for CPUs is wrong where the last block of keys is not whole (seen with torch 2.13). Powers of
        # two, since every length is compiled by itself; blocks that nobody asks for cost nothing.
        lengths = tuple(
            length if length == 1 else side * 2 ** math.ceil(math.log2(-(-length // side)))
            for length, side in zip(lengths, attention_mask.BLOCK_SIZE, strict=True)
        )
        kernel = _flex_on_a_cpu
    block_mask = attention_mask
    if lengths != (queries, keys) or bool(torch.isfinite(windows).any()):
        block_mask = _within_windows(attention_mask, places, key_places, windows, sinks, lengths)
    more, more_keys = lengths[0] - queries, lengths[1] - keys
    places, of_query, stretch = (nn.functional.pad(one, (0, more)) for one in (places, of_query, stretch))
    key_places, of_key = (nn.functional.pad(one, (0, more_keys)) for one in (key_places, of_key))

    def modified(score: Any, b: Any, h: Any, i: Any, j: Any) -> Any:
        relevance = score * of_query[b, h, i] * of_key[b, h // each, j]
        ramp = ((relevance - threshold[h]) * slope[h]).clamp(0, 1)
        place = key_places[b, j]
        first = place < sinks
        kept = first | ((ramp > 0) & (places[b, i] - place < windows[h]))
        score = score * stretch[b, h, i]
        if softcap is not None:
            score = torch.tanh(score / softcap) * softcap
        accepted = torch.where(first | (ramp <= 0), 1.0, ramp)
        return torch.where(kept, score + 2 * torch.log(accepted), -torch.inf)

    grouped = each & (each - 1) == 0  # the kernels take powers of two
    if not grouped:
        key, value = key.repeat_interleave(each, 1), value.repeat_interleave(each, 1)
    output: Any = kernel(
        nn.functional.pad(unscaled_query, (0, 0, 0, more)),
        nn.functional.pad(key, (0, 0, 0, more_keys)),
        nn.functional.pad(value, (0, 0, 0, more_keys)),
        score_mod=modified,
        block_mask=block_mask,
        enable_gqa=grouped,
        scale=1.0,
        kernel_options=kwargs.get("kernel_options"),
    )
    return output[:, :, :queries].transpose(1, 2).contiguous()


@functools.cache
def _compiled_flex() -> Callable[..., Any]:
    from torch.nn.attention.flex_attention import flex_attention

    # With sizes left open, the code that is made for a CPU does not compile (torch 2.13).
    return torch.compile(flex_attention, dynamic=False, fullgraph=True)


def _flex_on_a_cpu(*tensors: torch.Tensor, **kwargs: Any) -> Any:
    """FlexAttention compiled for each length by itself; beyond many of them an error, and no slower way in silence."""
    with torch._dynamo.config.patch(recompile_limit=64):
        return _compiled_flex()(*tensors, **kwargs)


def _places(block_mask: Any, places: torch.Tensor, keys: int) -> torch.Tensor:
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


def _within_windows(
    block_mask: Any,
    places: torch.Tensor,
    key_places: torch.Tensor,
    windows: torch.Tensor,
    sinks: int,
    lengths: tuple[int, ...],
) -> Any:
    """A block mask per head without the blocks that hold neither a key inside the head's window nor a first key.

    ``lengths``: of queries and keys, whole blocks where those of ``places`` and ``key_places`` are not; nobody may
    attend to what is more.
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
    order = kept.int().argsort(dim=-1, descending=True, stable=True).int().contiguous()
    counts = kept.sum(-1, dtype=torch.int32).contiguous()
    mask_mod = block_mask.mask_mod

    def inside(b: Any, h: Any, i: Any, j: Any) -> Any:
        here = mask_mod(b, h, i.clamp(max=queries - 1), j.clamp(max=keys - 1))
        return here & (i < queries) & (j < keys)

    return type(block_mask).from_kv_blocks(
        counts,
        order,
        # None is full in the sense that its mask need not be looked at. The kernel for CPUs wants to be told so.
        torch.zeros_like(counts),
        torch.zeros_like(order),
        BLOCK_SIZE=block_mask.BLOCK_SIZE,
        mask_mod=mask_mod if lengths == (queries, keys) else inside,
        seq_lengths=lengths,
        compute_q_blocks=False,
    )
