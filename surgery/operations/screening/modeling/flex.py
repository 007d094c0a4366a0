# Copyright 2026 The surgery authors. Licensed under the Apache License, Version 2.0.
"""Screened attention in torch's FlexAttention."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn

from surgery.operations.screening.modeling.acceptance import Acceptance
from surgery.operations.screening.modeling.block_masks import places_of_keys, require_block_mask, within_windows
from surgery.operations.screening.modeling.gradients import HARD
from surgery.operations.screening.modeling.reference import needs_gradients
from surgery.runtime.operation import CHUNK, AttentionCall


def has_gradients(screening: Acceptance, call: AttentionCall) -> bool:
    """Whether :func:`attend_in_flex` has gradients for the query, the keys and the values of a call.

    Layers that are units alone have them, and layers without thresholds, on a device whose kernel has a backward pass.
    The numbers of the screening have none here: a key that is just rejected would not move its threshold.
    """
    simple = screening.kind() == "unit" or _has_windows_alone(screening, call)
    return simple and not screening.learns() and _has_backward(call.query)


def _has_windows_alone(screening: Acceptance, call: AttentionCall) -> bool:
    """Whether every head has softmax, and none has a threshold."""
    return screening.kind() == "gated" and all(screening.reach(call.key.shape[1]).accepting)


def attend_in_flex(screening: Acceptance, call: AttentionCall) -> torch.Tensor:
    """Screening as a modification of FlexAttention's scores, and a block mask without the blocks outside all windows.

    The products are those of the raw query and key, so their precision is the backend's own; the relevance and the
    scores follow from them and the lengths of both. Without thresholds no relevance is needed: the kernel is given the
    query as it is, and the modification only hides what lies outside the windows. Each head has softmax or none (p is 1
    or 0).

    A head without softmax gives the kernel the scores ln alpha. The kernel returns sum alpha v / S with S = sum alpha,
    and ln S as its log-sum-exp, so their product is the sum. The kernel for CPUs returns no log-sum-exp. There an
    extra key has score 0 and value 0, and an extra dimension of the values is 1 for this key alone: the kernel returns
    sum alpha v / (1 + S) and 1 / (1 + S), and their ratio is the sum. Neither way loses precision, however large or
    small S is, and a query that accepts nothing gets exactly zero.

    With gradients (:func:`has_gradients`) units give the kernel normalised queries and keys, since lengths that the
    modification of the scores captures would cost an addition to memory for every pair in the backward pass.
    """
    from transformers.integrations import flex_attention

    backward, alone = needs_gradients(call), _has_windows_alone(screening, call)
    if backward and not alone:
        unscaled, normal_key = (nn.functional.normalize(one, dim=-1) for one in (call.unscaled_query, call.key))
        call = call._replace(unscaled_query=unscaled, key=normal_key)
    _, _, _, module, query, unscaled_query, key, value, attention_mask, visible_keys, _, kwargs = call
    kind = screening.kind()
    if kind != "unit" and (unusual := [word for word in ("position_bias", "s_aux") if kwargs.get(word) is not None]):
        raise ValueError(
            f"screening does not run in FlexAttention with {unusual[0]}: use "
            'attn_implementation="eager", or "sdpa" if the family has it.'
        )
    batch, heads, queries, _ = query.shape
    keys, each, sinks = key.shape[2], heads // key.shape[1], 0 if kind == "unit" else screening.sinks
    block_mask = require_block_mask(attention_mask)
    places = (visible_keys - 1).expand(batch, queries)
    key_places = places if keys == queries else places_of_keys(block_mask, places, keys)
    if getattr(module, CHUNK, None) is not None:  # counted back from the last query, over the beginning of its chunk
        key_places = key_places % getattr(module, CHUNK)
    each_head = _heads(screening)
    lengths: tuple[int, ...] = (queries, keys)
    kernel: Callable[..., Any] = functools.partial(
        flex_attention.compile_friendly_flex_attention, training=module.training
    )
    extra_key = each_head.unit is not None and not _has_log_sum_exp(query)
    if query.device.type == "cpu":
        # torch's kernel for CPUs is wrong where the last block of keys is not whole (seen with torch 2.13). Powers of
        # two, since every length is compiled by itself; blocks that nobody asks for cost nothing.
        lengths = tuple(
            length if length == 1 else side * 2 ** math.ceil(math.log2(-(-length // side)))
            for length, side in zip((queries, keys + extra_key), block_mask.BLOCK_SIZE, strict=True)
        )
        kernel = _flex_on_a_cpu
    if lengths != (queries, keys) or bool(torch.isfinite(each_head.window).any()):
        given = (places, key_places, each_head.window, sinks, lengths)
        block_mask = within_windows(block_mask, *given, extra_key, backward)
    more, more_keys = lengths[0] - queries, lengths[1] - keys
    located = (places, key_places, sinks, (more, more_keys))
    scale = kwargs["scaling"] if kwargs.get("scaling") is not None else query.shape[-1] ** -0.5
    grouped = each & (each - 1) == 0  # the kernels take powers of two
    padded_key, padded_value = (
        nn.functional.pad(one if grouped else one.repeat_interleave(each, 1), (0, wider, 0, more_keys))
        for one, wider in ((key, 0), (value, int(extra_key)))
    )
    if extra_key:
        padded_value[:, :, keys, -1] = 1
    found: Any = kernel(
        nn.functional.pad(query if alone else unscaled_query, (0, 0, 0, more)),
        padded_key,
        padded_value,
        score_mod=_windowed(call, each_head, *located)
        if alone
        else _scores(call, each_head, *located, scale, extra_key),
        block_mask=block_mask,
        enable_gqa=grouped,
        scale=scale if alone else 1.0,
        kernel_options=kwargs.get("kernel_options"),
        **({} if each_head.unit is None or extra_key else _asking_for_log_sum_exp()),
    )
    if each_head.unit is not None:
        found = screening.finish(_sums(found, each_head.unit[:, None, None], extra_key)).to(query.dtype)
    return found[:, :, :queries].transpose(1, 2).contiguous()


class _Heads(NamedTuple):
    """What each head accepts, every tensor ``(heads,)``.

    Attributes:
        threshold: t.
        slope: 1 / tau.
        window: w in keys, infinite for none.
        unit: which heads have no softmax; None if all have it.
        angle: of the cosine for each key of distance; 0 in heads with softmax.
    """

    threshold: torch.Tensor
    slope: torch.Tensor
    window: torch.Tensor
    unit: torch.Tensor | None
    angle: torch.Tensor


def _heads(screening: Acceptance) -> _Heads:
    threshold, softness, log2_window = (one.flatten() for one in screening.of_all_heads())
    window = screening.windows_of(log2_window)
    window = window.masked_fill(window >= screening.full_window, torch.inf)
    unit = None if screening.kind() == "gated" else screening.exponents().flatten() == 0
    angle = torch.zeros_like(window)
    if unit is not None:
        softness = torch.where(unit, 1 - threshold, softness)
        angle = torch.where(unit, math.pi / 2 / window, angle)
    return _Heads(threshold, 1 / softness.clamp(min=HARD), window, unit, angle)


def _windowed(
    call: AttentionCall,
    each_head: _Heads,
    places: torch.Tensor,
    key_places: torch.Tensor,
    sinks: int,
    more: tuple[int, int],
) -> Callable[..., Any]:
    """The modification of the scores z of heads without thresholds; arguments as of :func:`_scores`."""
    places, key_places = (nn.functional.pad(one, (0, end)) for one, end in zip((places, key_places), more, strict=True))
    softcap, windows = call.options.get("softcap"), each_head.window

    def modified(score: Any, b: Any, h: Any, i: Any, j: Any) -> Any:
        if softcap is not None:
            score = torch.tanh(score / softcap) * softcap
        place = key_places[b, j]
        return torch.where((place < sinks) | (places[b, i] - place < windows[h]), score, -torch.inf)

    return modified


def _scores(
    call: AttentionCall,
    each_head: _Heads,
    places: torch.Tensor,
    key_places: torch.Tensor,
    sinks: int,
    more: tuple[int, int],
    scale: float,
    extra_key: bool,
) -> Callable[..., Any]:
    """The modification of scores: from the product of the raw query and key to z + ln alpha, or ln alpha of a unit.

    Arguments as of :func:`within_windows`; ``more``: queries and keys that only make whole blocks; ``scale``: of z.
    """
    query, raw, key = (one.detach() for one in (call.query, call.unscaled_query.float(), call.key.float()))
    square = raw.square().sum(-1).clamp(min=1e-24)
    stretch = (query.float() * raw).sum(-1) / square * scale  # the operations' multiplier and the usual scale
    of_query, of_key = square.rsqrt(), key.norm(dim=-1).clamp(min=1e-12).reciprocal()
    places, of_query, stretch = (nn.functional.pad(one, (0, more[0])) for one in (places, of_query, stretch))
    key_places, of_key = (nn.functional.pad(one, (0, more[1])) for one in (key_places, of_key))
    softcap, keys, each = call.options.get("softcap"), key.shape[2], query.shape[1] // key.shape[1]
    threshold, slope, windows, unit, angle = each_head
    score_of_extra = torch.zeros_like(angle) if unit is None else torch.where(unit, 0.0, -torch.inf)

    def modified(score: Any, b: Any, h: Any, i: Any, j: Any) -> Any:
        relevance = score * of_query[b, h, i] * of_key[b, h // each, j]
        ramp = ((relevance - threshold[h]) * slope[h]).clamp(0, 1)
        place = key_places[b, j]
        first, distance = place < sinks, places[b, i] - place
        score = score * stretch[b, h, i]
        if softcap is not None:
            score = torch.tanh(score / softcap) * softcap
        if unit is not None:
            first = first & ~unit[h]
            ramp = ramp * torch.cos(distance.clamp(min=0) * angle[h]).clamp(min=1e-12)
            score = torch.where(unit[h], 0.0, score)
        kept = first | ((ramp > 0) & (distance < windows[h]))
        accepted = torch.where(first | (ramp <= 0), 1.0, ramp)
        score = torch.where(kept, score + 2 * torch.log(accepted), -torch.inf)
        return torch.where(j == keys, score_of_extra[h], score) if extra_key else score

    return modified


def _sums(found: Any, units: torch.Tensor, extra_key: bool) -> torch.Tensor:
    """What the kernel returned, without the softmax of the heads ``units`` ``(heads, 1, 1)``, in float32."""
    if extra_key:
        output, rest = found[..., :-1].float(), found[..., -1:].float()
        return output / torch.where(units, rest, 1.0)
    output, more = found
    log_sum: torch.Tensor = getattr(more, "lse", more)
    return output.float() * torch.where(units, log_sum.unsqueeze(-1).exp(), 1.0)


def _has_backward(query: torch.Tensor) -> bool:
    return query.device.type != "cpu"


def _has_log_sum_exp(query: torch.Tensor) -> bool:
    return query.device.type != "cpu"


def _asking_for_log_sum_exp() -> dict[str, Any]:
    """The keyword that makes FlexAttention return it, which is another one from torch 2.9 on."""
    from torch.nn.attention import flex_attention

    request = getattr(flex_attention, "AuxRequest", None)
    return {"return_lse": True} if request is None else {"return_aux": request(lse=True)}


@functools.cache
def _compiled_flex() -> Callable[..., Any]:
    from torch.nn.attention.flex_attention import flex_attention

    # With sizes left open, the code that is made for a CPU does not compile (torch 2.13).
    return torch.compile(flex_attention, dynamic=False, fullgraph=True)


def _flex_on_a_cpu(*tensors: torch.Tensor, **kwargs: Any) -> Any:
    """FlexAttention compiled for each length by itself; beyond many of them an error, and no slower way in silence."""
    with torch._dynamo.config.patch(recompile_limit=64):
        return _compiled_flex()(*tensors, **kwargs)
