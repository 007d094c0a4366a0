# Copyright 2026 The surgery authors. Licensed under the Apache License, Version 2.0.
"""The modelling code of a checkpoint whose attention was operated on. It travels beside the weights.

It needs torch and transformers only. Everything about the model at hand is read from the block ``surgery`` of its
``config.json``; this file is the same for every checkpoint and family.

How it works, in three steps:

1. ``Surgery<X>`` is a subclass of transformers' own class ``<X>`` (``SurgeryLlamaForCausalLM`` of
   ``LlamaForCausalLM``), made when it is first asked for. No family's code is copied.
2. The base model's ``forward`` works out n, the number of keys that each query may attend to, and passes it down.
3. Each attention module on which an operation was performed becomes a subclass of itself. Its ``forward`` is the
   family's own bytecode with one name rebound: where it looks up the attention backend, it finds a wrapper that
   multiplies the query by m(n) and hands over to whatever backend is configured (sdpa, eager, flash, flex, or one
   that a serving engine registered). softmax(m q.k) is SSMax exactly (arXiv 2501.19399), since m depends on the head
   and the query alone.
"""

from __future__ import annotations

import functools
import inspect
import json
import math
import types
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import transformers
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import CacheLayerMixin, DynamicCache, DynamicLayer

FORMAT_VERSION = 1
PREFIX = "Surgery"
MODEL_TYPE_PREFIX = "surgery_"

# The name of the keyword that carries n from the base model's forward to the attention modules.
VISIBLE_KEYS = "surgery_visible_keys"
# The attribute of an attention module whose keys are cut into chunks: the size of one.
CHUNK = "surgery_chunk"
# What transformers calls the cache, since 5.24 and before.
CACHE_NAMES = ("cache", "past_key_values")


# ------------------------------------------------------------------------------------------------- counting keys


def count_visible_keys(
    length: int,
    device: torch.device,
    attention_mask: Any = None,
    position_ids: torch.Tensor | None = None,
    past_length: int | torch.Tensor = 0,
) -> torch.Tensor:
    """Number of keys that each query may attend to, itself included, however the sequence is presented.

    It is the least of what is known: the position in its own document plus one, and the number of real keys that
    the mask shows up to the query. Positions of more than two dimensions (M-RoPE) are no counts and are not used, but
    for the text's own where they come first of four. What a 4-D mask shows beyond the query, as the tokens of an image
    do of one another, is counted too.

    Args:
        length: number of queries in this call.
        device: where the result lives.
        attention_mask: ``(batch, past + length)`` with 0 for padding, or ``(batch, 1, length, keys)`` (boolean, or
            added to the scores), or a mapping of those by layer type, or None. Other kinds are not counted.
        position_ids: ``(batch or 1, length)``, or None for positions that continue after the cache.
        past_length: number of keys already in the cache.

    Returns:
        ``(batch or 1, length)``, float32, at least 1.
    """
    positions = torch.arange(length, device=device) + past_length
    if position_ids is not None and position_ids.dim() == 3 and position_ids.shape[0] == 4:
        position_ids = position_ids[0]
    if position_ids is not None and position_ids.dim() <= 2:
        visible = position_ids.reshape(-1, length).to(device) + 1
    else:
        visible = positions[None] + 1

    if isinstance(attention_mask, dict):
        attention_mask = attention_mask.get("full_attention", next(iter(attention_mask.values()), None))
    if isinstance(attention_mask, torch.Tensor) and attention_mask.dim() == 2:
        running = attention_mask.to(device).long().cumsum(-1)
        # The mask covers the cache too, and may cover the rest of a static one: pick the columns of these queries.
        columns = positions.clamp(max=running.shape[-1] - 1)
        visible = torch.minimum(visible, running.index_select(-1, columns))
    elif isinstance(attention_mask, torch.Tensor) and attention_mask.dim() == 4:
        allowed = _lets_through(attention_mask.to(device))[:, 0, -length:]
        beyond = allowed & (torch.arange(allowed.shape[-1], device=device) > positions[:, None])
        visible = torch.minimum(visible, (allowed & ~beyond).sum(-1)) + beyond.sum(-1)
    return visible.clamp(min=1).to(torch.float32)


def _lets_through(mask: torch.Tensor) -> torch.Tensor:
    """A mask of four dimensions, boolean or added to the scores, as boolean: which key a query may attend to."""
    return mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2


def _in_chunk(visible_keys: torch.Tensor, chunk: int, attention_mask: Any) -> torch.Tensor:
    """n in a layer whose keys are cut into chunks, from the n of a layer that has all of them.

    Chunks begin with the row or with the document, as transformers cuts them, and not at all in a mask that the user
    made: so the layer's own mask is counted where there is one.

    Args:
        visible_keys: ``(batch or 1, queries)``.
        chunk: keys in a chunk.
        attention_mask: of the layer: ``(batch or 1, 1, queries, keys)``, or of another kind, or None.
    """
    if isinstance(attention_mask, torch.Tensor) and attention_mask.dim() == 4:
        return _lets_through(attention_mask)[:, 0].sum(-1).clamp(min=1).to(torch.float32)
    return (visible_keys - 1) % chunk + 1


# ----------------------------------------------------------------------------------------------------- operations


def _at_least_float32(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


class Operation(nn.Module):
    """Parameters per query head of one attention layer, one vector over the chosen heads each.

    They are float32 whatever the model's dtype: an optimizer step cannot move a bfloat16 value of 0.15. Switched off
    by ``enabled``, the layer is as it was.
    """

    def __init__(self, options: dict[str, Any], num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.start: dict[str, float] = options.get("start") or {}
        self.heads: list[int] | None = options.get("heads")
        self.enabled = True

    def _add_parameters(self, *names: str) -> None:
        for name in names:
            size = self.num_heads if self.heads is None else len(self.heads)
            setattr(self, name, nn.Parameter(torch.empty(size, dtype=torch.float32)))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Set every parameter to its start value from config.json."""
        for name, parameter in self.named_parameters(recurse=False):
            parameter.fill_(self.start[name])

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Operation:
        """Follow moves between devices but no casts: ``model.to(torch.bfloat16)`` leaves the parameters float32."""

        def keep_dtype(tensor: torch.Tensor) -> torch.Tensor:
            applied = fn(tensor)
            return applied if applied.dtype == tensor.dtype else tensor.to(applied.device)

        return super()._apply(keep_dtype, recurse)


class SSMax(Operation):
    """Query multiplier m(n) per head: softmax((m_h(n) z)) in place of softmax(z).

    ======== ============================= =========================
    form     m(n)                          learned per head
    ======== ============================= =========================
    paper    s ln n                        scale s
    bias     s ln n + b                    scale s, bias b
    anchored 1 + s (ln n - ln N)           scale s
    logn     max(1, ln n / ln N)           nothing
    ======== ============================= =========================

    N is the reference length. Heads that were not chosen have no parameter and a multiplier of exactly 1.
    """

    scale: nn.Parameter
    bias: nn.Parameter

    def __init__(self, options: dict[str, Any], num_heads: int) -> None:
        super().__init__(options, num_heads)
        self.form: str = options["form"]
        self.log_reference = math.log(options["reference_length"])
        if self.form not in ("paper", "bias", "anchored", "logn"):
            raise ValueError(f"ssmax: unknown form {self.form!r}")
        names = {"logn": (), "bias": ("scale", "bias")}
        self._add_parameters(*names.get(self.form, ("scale",)))

    def forward(self, visible_keys: torch.Tensor, window: int | None = None) -> torch.Tensor:
        """Multiplier of the query.

        Args:
            visible_keys: n, ``(batch or 1, queries)``.
            window: sliding window of this layer, at which n saturates; a layer of chunks has been given its n in them.

        Returns:
            ``(batch or 1, heads, queries, 1)``, float32.
        """
        if window is not None:
            visible_keys = visible_keys.clamp(max=window)
        # Views rather than indexing: in decoding, the cost of these few numbers is that of the calls.
        log_n = visible_keys.log().unsqueeze(1).unsqueeze(-1)
        if self.form == "logn":
            multiplier = (log_n / self.log_reference).clamp(min=1.0)
            multiplier = multiplier.expand(-1, self.num_heads if self.heads is None else len(self.heads), -1, -1)
        else:
            scale = self.scale.float().view(-1, 1, 1)
            if self.form == "paper":
                multiplier = scale * log_n
            elif self.form == "bias":
                multiplier = scale * log_n + self.bias.float().view(-1, 1, 1)
            else:
                multiplier = scale * (log_n - self.log_reference) + 1.0
        if self.heads is not None:
            everyone = multiplier.new_ones(multiplier.shape[0], self.num_heads, multiplier.shape[2], 1)
            chosen = torch.tensor(self.heads, device=multiplier.device)
            multiplier = everyone.index_copy(1, chosen, multiplier)
        return multiplier

    def extra_repr(self) -> str:
        """What print(model) shows."""
        return f"form={self.form}, heads={self.num_heads if self.heads is None else self.heads}"


class Observation(NamedTuple):
    """What an observer of :class:`Screening` is shown: a block of queries, before anything is rejected.

    Attributes:
        rows: numbers of the block's queries in this call.
        weights: softmax weights, ``(batch, heads, queries, keys)``.
        relevance: rho, of the same shape.
        distance: allowed keys between key and query, ``(batch or 1, 1, queries, keys)``.
        allowed: which keys the query may attend to at all, of the same shape as ``distance``.
        sinks: the first keys of the document, which are always kept; of the same shape.
        acceptance: alpha and window as the module has them now, ``(batch, heads, queries, keys)``.
        kept: what the values are added up with, of the same shape; its rows need not add up to one.
        value: of each key, ``(batch, key-value heads, keys, head_dim)``.
    """

    rows: torch.Tensor
    weights: torch.Tensor
    relevance: torch.Tensor
    distance: torch.Tensor
    allowed: torch.Tensor
    sinks: torch.Tensor
    acceptance: torch.Tensor
    kept: torch.Tensor
    value: torch.Tensor


class _Band(NamedTuple):
    """Key-value heads whose query heads all look at most ``window`` keys back (None: at all); see Screening.bands.

    ``accepting``: no threshold of theirs rejects anything.
    """

    window: int | None
    accepting: bool
    groups: list[int]


class _Reach(NamedTuple):
    """Of each key-value head: the widest window of its query heads (None: none), and whether no threshold rejects."""

    windows: list[int | None]
    accepting: list[bool]


class Screening(Operation):
    """Rejects keys: per query head an absolute threshold on the relevance, and a window on the distance.

    The relevance of key j to query i is rho = cos(q_i, k_j), after norms and RoPE, before SSMax's multiplier. What is
    accepted of a key is ::

        alpha = clamp((rho - t) / tau, 0, 1)^2   for the keys at a distance below w, else 0

    (the trim-and-square of arXiv 2604.01178), and 1 for the first ``sinks`` keys of the document, or of the chunk in a
    layer that has chunks. The weights are softmax(z) times alpha, renormalised over what survives; if nothing does, the
    head gives zero.

    Learned per head, float32: ``threshold`` t, ``softness`` tau (0 or less is hard: all or nothing), and
    ``log2_window``, whose power of two, rounded, is w. From ``full_window`` on, a window bounds nothing.
    A head with t < -1 - tau and a full window is open: it accepts everything.

    Where alpha saturates its gradient is zero, and an edge in integers has none. A surrogate takes its place: t and
    tau get the gradient of sigmoid((rho - t - tau/2) / (max(tau, 0.1)/4)) where alpha is 0 or 1, and the window that
    of sigmoid(4 (log2 w - log2(distance + 1))), within an octave of its edge alone: a text teaches nothing to a
    window that reaches far beyond it. What is rejected is counted with a gradient too: :meth:`count_rejected`.

    All of this is the form ``gated``. The form ``unit`` has three numbers more: ``log2_gain``, ``log2_bound`` and the
    exponent ``renormalisation`` p, from 1 to 0, which is set and never learned. At p = 0 it is the screening unit of
    arXiv 2604.01178 on the pretrained projections, with no softmax, no renormalisation and no kept first keys::

        alpha = clamp((rho - t) / (1 - t), 0, 1)^2 (1 + cos(pi distance / w)) / 2    below w, else 0
        y     = gain sum_j alpha_j v_j
        out   = bound tanh(|y| / bound) y / |y|

    From ``full_window`` on the distance does not count; its gradient stays that of the cosine. At p = 1 it is
    ``gated``. Between the two, with m the cosine term, S the sum of e^z alpha over the keys, and a first key accepted
    by p + (1 - p) of what it would be were it not a first one::

        tau = p softness + (1 - p)(1 - t),   alpha = ramp^2 m^(1 - p)
        y   = gain^(1 - p) sum_j alpha_j (e^z_j / S)^p v_j
        out = p y + (1 - p) bound tanh(|y| / bound) y / |y|
    """

    HARD = 1e-7  # the softness that stands for none: one step of float32
    SOFT = 1e-3  # below it the exact gradient is too steep to be of use, and the surrogate takes its place
    threshold: nn.Parameter
    softness: nn.Parameter
    log2_window: nn.Parameter
    log2_gain: nn.Parameter
    log2_bound: nn.Parameter
    renormalisation: nn.Parameter

    def __init__(self, options: dict[str, Any], num_heads: int) -> None:
        super().__init__(options, num_heads)
        self.form: str = options["form"]
        if self.form not in ("gated", "unit"):
            raise ValueError(f"screening: unknown form {self.form!r}")
        self.sinks: int = options["sinks"]
        self.full_window: int = options["full_window"]
        self.observer: Callable[[Observation], None] | None = None
        self.observed_rows: torch.Tensor | None = None  # numbers of the queries that the observer is shown; None: all
        # Wherever parameters learn it is given the rejected keys of each head, with a gradient, and how many keys.
        self.counter: Callable[[torch.Tensor, int], None] | None = None
        self.path = "not run"  # which code ran last: open, reference, or the name of a backend
        self._known: dict[int, tuple[Any, _Reach]] = {}
        self._known_kind: tuple[Any, str] | None = None
        names: tuple[str, ...] = ()
        if self.form == "unit":
            names = ("log2_gain", "log2_bound", "renormalisation")
            self.start = {**self.start, "renormalisation": options["renormalisation"]}
        self._add_parameters("threshold", "softness", "log2_window", *names)
        if self.form == "unit":
            self.renormalisation.requires_grad_(False)

    def kind(self) -> str:
        """``gated``; ``unit``, where no head has softmax left; or ``between``. Looked up again after p has changed."""
        if self.form == "gated":
            return "gated"
        exponent = self.renormalisation
        state = None if exponent.is_inference() else (id(exponent), exponent._version)
        if state is None or self._known_kind is None or self._known_kind[0] != state:
            values = set(self.exponents().flatten().tolist())
            kind = "gated" if values == {1.0} else "unit" if values == {0.0} else "between"
            self._known_kind = (state, kind)
        return self._known_kind[1]

    def exponents(self) -> torch.Tensor:
        """p of every head, ``(heads, 1, 1)``; heads that were not chosen keep their softmax."""
        return self._of_heads(self.renormalisation.detach().float().clamp(0, 1), 1.0)

    def is_open(self) -> bool:
        """Whether every head accepts every key, by softmax. Looked up again only after a parameter has changed."""
        if self.kind() != "gated":
            return False
        each = self.reach(self.num_heads)
        return all(each.accepting) and all(window is None for window in each.windows)

    def bands(self, groups: int) -> list[_Band]:
        """The key-value heads, ``groups`` in all, by what of the keys their query heads look at."""
        reach = self.reach(groups)
        found: dict[tuple[int | None, bool], list[int]] = {}
        for group, (window, accepting) in enumerate(zip(reach.windows, reach.accepting, strict=True)):
            # Windows are rounded up to powers of two, so that there are few bands; each head keeps its own edge.
            width = None if window is None else 2 ** math.ceil(math.log2(window))
            found.setdefault((width, accepting), []).append(group)
        return [_Band(width, accepting, members) for (width, accepting), members in found.items()]

    def reach(self, groups: int) -> _Reach:
        """What the key-value heads, ``groups`` in all, are asked for. Looked up again after a parameter has changed."""
        parameters = (self.threshold, self.softness, self.log2_window)
        # Tensors made under torch.inference_mode count no versions; they are looked at each time.
        counted = not any(parameter.is_inference() for parameter in parameters)
        state = tuple((id(parameter), parameter._version) for parameter in parameters) if counted else None
        known = self._known.get(groups)
        if state is None or known is None or known[0] != state:
            threshold, softness, log2_window = (value.flatten() for value in self._of_all_heads())
            widest = self._windows_of(log2_window).view(groups, -1).amax(-1).tolist()
            accepting = (threshold < -1 - softness).view(groups, -1).all(-1).tolist()
            windows = [None if window >= self.full_window else int(window) for window in widest]
            known = self._known[groups] = (state, _Reach(windows, accepting))
        return known[1]

    def learns(self) -> bool:
        """Whether threshold, softness or window are to get gradients now."""
        return torch.is_grad_enabled() and any(parameter.requires_grad for parameter in self.parameters())

    def windows(self) -> torch.Tensor:
        """w per chosen head, in keys: whole numbers, float32."""
        return self._windows_of(self.log2_window)

    def relevance(self, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        """rho ``(batch, heads, queries, keys)``, float32 or more, of each query head against the keys of its group."""
        batch, heads, length, size = query.shape
        query = nn.functional.normalize(_at_least_float32(query), dim=-1).reshape(batch, key.shape[1], -1, size)
        key = nn.functional.normalize(_at_least_float32(key), dim=-1)
        return (query @ key.transpose(-1, -2)).view(batch, heads, length, -1)

    def acceptance(
        self,
        relevance: torch.Tensor,
        distance: torch.Tensor,
        sinks: torch.Tensor,
        members: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """alpha within the window ``(batch, heads, queries, keys)``, with the surrogate gradients of the class.

        ``members``: numbers of the query heads that ``relevance`` holds; all of them where absent.
        """
        values = self._of_all_heads()
        threshold, softness, log2_window = values if members is None else (value[members] for value in values)
        if self.kind() == "gated":
            return self._trimmed(relevance, threshold, softness, log2_window, distance, sinks)
        exponent = self.exponents() if members is None else self.exponents()[members]
        softness = exponent * softness + (1 - exponent) * (1 - threshold)
        # The cosine has a gradient of its own; what the edge's surrogate gives fades as it comes.
        edge = exponent * log2_window + (1 - exponent) * log2_window.detach()
        alpha = self._trimmed(relevance, threshold, softness, edge, distance, torch.zeros_like(sinks))
        alpha = alpha * self._softmask(distance, log2_window, exponent)
        if self.kind() == "between":
            alpha = torch.where(sinks, exponent + (1 - exponent) * alpha, alpha)
        return alpha

    def _trimmed(
        self,
        relevance: torch.Tensor,
        threshold: torch.Tensor,
        softness: torch.Tensor,
        log2_window: torch.Tensor,
        distance: torch.Tensor,
        sinks: torch.Tensor,
    ) -> torch.Tensor:
        """The ramp squared inside the window; 1 for ``sinks``."""
        inside = self._inside(distance, log2_window)
        if self.learns():
            alpha: torch.Tensor = _Acceptance.apply(
                relevance, threshold, softness, log2_window, distance, sinks, inside
            )
            return alpha
        ramp = ((relevance - threshold) / softness.clamp(min=self.HARD)).clamp(0, 1)
        return (ramp * ramp * inside).masked_fill(sinks, 1.0)

    def _softmask(self, distance: torch.Tensor, log2_window: torch.Tensor, exponent: torch.Tensor) -> torch.Tensor:
        """((1 + cos(pi distance / w)) / 2)^(1 - p), and 1 from the full window on, ``(batch or 1, heads, ...)``.

        w counts as its whole number and has the gradient of 2^log2_window; a full window that of the cosine.
        """
        window, whole = log2_window.exp2(), self._windows_of(log2_window)
        part = (distance.clamp(min=0) / (window + (whole - window).detach())).clamp(max=1.0)
        cosine = (math.pi / 2 * part).cos().clamp(min=1e-12)
        mask = cosine.square() if self.kind() == "unit" else cosine.pow(2 * (1 - exponent))
        full = torch.where(whole >= self.full_window, 1 - mask, torch.zeros_like(mask)).detach()
        return mask + full

    def weigh(
        self, accepted: torch.Tensor, weights: torch.Tensor | None, has_sink: bool, members: torch.Tensor | None = None
    ) -> torch.Tensor:
        """What the values are added up with: the weights renormalised over the accepted keys, and in the form ``unit``
        alpha (e^z / S)^p; see the class.

        Args:
            accepted: alpha, ``(batch, heads, queries, keys)``.
            weights: softmax weights of the same shape; not looked at where no head has any (``kind() == "unit"``).
            has_sink: whether the family has a learned sink, whose share is in S.
            members: numbers of the query heads; all of them where absent.
        """
        if self.kind() == "unit":
            return accepted
        assert weights is not None
        if self.kind() == "gated":
            return _renormalised(weights, accepted, has_sink)
        exponent = self.exponents() if members is None else self.exponents()[members]
        weights = _at_least_float32(weights)
        share = weights / _left(weights, accepted, has_sink)
        # Zero to a small power has an endless gradient; and a rejected key pulls no harder than all survivors.
        share = torch.where(accepted == 0, share.clamp(max=1.0), share).clamp(min=1e-30)
        return accepted * share.pow(exponent)

    def finish(self, summed: torch.Tensor, members: torch.Tensor | None = None) -> torch.Tensor:
        """Gain and TanhNorm of the form ``unit`` on the summed values ``(batch, heads, queries, head_dim)``.

        TanhNorm is tanh(|h|) h / |h|, here of h = y / bound, times the bound: it keeps small outputs as they are.
        """
        gain, bound, exponent = (
            value if members is None else value[members]
            for value in (
                self._of_heads(self.log2_gain.float(), 0.0),
                self._of_heads(self.log2_bound.float(), 0.0),
                self.exponents(),
            )
        )
        scaled = summed.float() * (gain * (1 - exponent)).exp2()
        # The least square keeps the gradient finite where nothing survives and the sum is zero.
        length = scaled.square().sum(-1, keepdim=True).clamp(min=1e-24).sqrt() / bound.exp2()
        normed = scaled * (length.tanh() / length)
        return (exponent * scaled + (1 - exponent) * normed).to(summed.dtype)

    def count_rejected(self, relevance: torch.Tensor, accepted: torch.Tensor, block: _Block) -> torch.Tensor:
        """Rejected keys per head ``(heads,)``: the exact number, with a gradient that reaches t and w.

        A number has no gradient. In its place is that of a soft count, in which what is accepted of a key is
        1/2 + x / (2 (1 + |x|)), x = (rho - t) / (max(tau, 0.1)/4), and sigmoid(4 (log2 w - log2(distance + 1)))
        within an octave of the window's edge. So a key pulls at t whether it is just accepted or just rejected, and,
        by the long tails, also where t is far below all keys, as in an open head. Every eighth query stands for all.
        Relevance gets no gradient: keys are not to become irrelevant so that they can be rejected.

        Args:
            relevance: rho, ``(batch, heads, queries, keys)``.
            accepted: alpha within the window, zero for keys that are not allowed; of the same shape.
            block: where the keys are.
        """
        threshold, softness, log2_window = self._of_all_heads()
        with torch.no_grad():
            number = ((accepted == 0) & block.allowed).sum((0, 2, 3)).float()
            every = slice(None, None, COUNTED_EVERY)
            relevance, distance = relevance[:, :, every], block.distance[:, :, every]
            free = (block.allowed & ~block.sinks)[:, :, every]
            each = len(block.rows) / relevance.shape[2]
            width = softness.clamp(min=0.1) / 4
            away = 1 + ((relevance - threshold) / width).abs()
            inside = free & self._inside(distance, log2_window)
            by_threshold = (each * inside / (2 * width * away * away)).sum((0, 2, 3))
            octaves = log2_window - (distance.clamp(min=0) + 1).to(relevance.dtype).log2()
            edge = torch.sigmoid(4 * octaves)
            at_edge = free & (octaves.abs() < 1) & (relevance > threshold)
            by_window = (4 * each * edge * (1 - edge) * at_edge).sum((0, 2, 3))
        # What is added is zero, and has the gradient alone: no matrix of pairs is kept for it.
        of_t, of_w = (value.flatten() - value.detach().flatten() for value in (threshold, log2_window))
        return number + by_threshold * of_t - by_window * of_w

    def _of_all_heads(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """t, tau and log2 w, ``(heads, 1, 1)``; heads that were not chosen are open."""
        return (
            self._of_heads(self.threshold.float(), -3.0),
            self._of_heads(self.softness.float().clamp(min=0), 0.0),
            self._of_heads(self.log2_window.float(), math.log2(self.full_window) + 1),
        )

    def _of_heads(self, value: torch.Tensor, default: float) -> torch.Tensor:
        """A value per chosen head as one per head, ``(heads, 1, 1)``; ``default`` for heads that were not chosen."""
        if self.heads is not None:
            chosen = torch.tensor(self.heads, device=value.device)
            value = value.new_full((self.num_heads,), default).index_copy(0, chosen, value)
        return value.view(-1, 1, 1)

    def _inside(self, distance: torch.Tensor, log2_window: torch.Tensor) -> torch.Tensor:
        windows = self._windows_of(log2_window)
        return (distance < windows) | (windows >= self.full_window)

    @staticmethod
    def _windows_of(log2_window: torch.Tensor) -> torch.Tensor:
        return log2_window.detach().exp2().round().clamp(min=1)

    def extra_repr(self) -> str:
        """What print(model) shows."""
        return f"form={self.form}, sinks={self.sinks}, heads={self.num_heads if self.heads is None else self.heads}"


class _Acceptance(torch.autograd.Function):
    """``Screening.acceptance`` with the gradients that its class says.

    By hand, because autograd goes over the matrix of all pairs several times as often, which is what training waits
    for. Arguments are as there; ``threshold``, ``softness`` and ``log2_window`` are ``(heads, 1, 1)``.
    """

    @staticmethod
    def forward(
        ctx: Any,
        relevance: torch.Tensor,
        threshold: torch.Tensor,
        softness: torch.Tensor,
        log2_window: torch.Tensor,
        distance: torch.Tensor,
        sinks: torch.Tensor,
        inside: torch.Tensor,
    ) -> torch.Tensor:
        ctx.save_for_backward(relevance, threshold, softness, log2_window, distance, sinks, inside)
        ramp = _Acceptance.ramp(relevance, threshold, softness)
        return ramp.mul_(ramp).mul_(inside).masked_fill_(sinks, 1.0)

    @staticmethod
    def ramp(relevance: torch.Tensor, threshold: torch.Tensor, softness: torch.Tensor) -> torch.Tensor:
        return (relevance - threshold).div_(softness.clamp(min=Screening.HARD)).clamp_(0, 1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        relevance, threshold, softness, log2_window, distance, sinks, inside = ctx.saved_tensors
        gradient = gradient.masked_fill(sinks, 0.0)
        ramp = _Acceptance.ramp(relevance, threshold, softness)

        by_window = torch.zeros_like(log2_window)
        octaves = (distance.clamp(min=0) + 1).to(gradient.dtype).log2()
        near = (log2_window.flatten() - octaves.max() < 1).nonzero().flatten()
        if len(near):  # only heads whose window ends within what is here
            away = log2_window[near] - octaves
            edge = torch.sigmoid(4 * away)
            slope = edge.sub_(edge * edge).mul_(4).mul_(away.abs() < 1)
            by_window[near] = (gradient[:, near] * ramp[:, near].square() * slope).sum((0, 2, 3)).view(-1, 1, 1).float()

        width = softness.clamp(min=0.1) / 4
        soft = (relevance - (threshold + softness / 2)).div_(width).sigmoid_()
        soft = soft.sub_(soft * soft).div_(width)
        exact = (ramp > 0) & (ramp < 1) & (softness >= Screening.SOFT)
        slope = torch.where(exact, ramp * (2 / softness.clamp(min=Screening.HARD)), soft)
        pulled = gradient.mul_(inside).mul_(slope)
        of_softness = pulled * torch.where(exact, ramp, 0.5)
        by_threshold, by_softness = (
            -total.sum((0, 2, 3)).view_as(threshold).to(threshold.dtype) for total in (pulled, of_softness)
        )
        return pulled.mul_(exact), by_threshold, by_softness, by_window, None, None, None


OPERATIONS: dict[str, type[Operation]] = {"ssmax": SSMax, "screening": Screening}


# ------------------------------------------------------------------------------------------- screened attention

# Elements of one (batch, heads, queries, keys) block, 2 MiB in float32: queries are taken in blocks of that size.
BLOCK_ELEMENTS = 2**19
# How many queries one stands for in the gradient of a count.
COUNTED_EVERY = 8


def _locate_keys(
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
        allowed = _lets_through(attention_mask[:, :, rows, :keys])
        running = allowed.cumsum(-1, dtype=torch.int32)
        distance = running[..., -1:] - running
    place = visible_keys[:, None, rows, None].to(distance.dtype) - 1 - distance
    return distance, allowed, place


class _Block(NamedTuple):
    """A block of queries and where their keys are: see :class:`Observation`.

    ``keys`` is how many of the keys it needs: those after its last query are left out where nothing hides them.
    ``bias`` is what a mask adds to the scores; None: nothing but what ``allowed`` says.
    """

    rows: torch.Tensor
    keys: int
    distance: torch.Tensor
    allowed: torch.Tensor
    sinks: torch.Tensor
    bias: torch.Tensor | None = None

    def at(self, columns: torch.Tensor) -> _Block:
        """The same queries with the keys of ``columns`` alone, ``(batch or 1, keys)``; -1 stands for no key."""
        rows = max(len(columns), len(self.allowed))
        index = columns.clamp(min=0)[:, None, None].expand(rows, 1, len(self.rows), -1)

        def taken(values: torch.Tensor) -> torch.Tensor:
            return values.expand(rows, *values.shape[1:]).gather(-1, index)

        allowed = taken(self.allowed) & (columns >= 0)[:, None, None]
        bias = None if self.bias is None else taken(self.bias)
        return _Block(self.rows, columns.shape[-1], taken(self.distance), allowed, taken(self.sinks), bias)


def _blocks(
    screening: Screening,
    query: torch.Tensor,
    keys: int,
    attention_mask: torch.Tensor | None,
    visible_keys: torch.Tensor,
    rows: torch.Tensor | None = None,
    whole: bool = False,
) -> Iterator[_Block]:
    """Blocks of queries, in order, such that memory is bounded by :data:`BLOCK_ELEMENTS`; ``whole``: with all keys."""
    batch, heads, queries, _ = query.shape
    everything = torch.arange(queries) if rows is None else rows.cpu()
    for numbers in everything.split(max(1, BLOCK_ELEMENTS // (batch * heads * keys))):
        present = int(numbers[-1]) + 1 if attention_mask is None and queries > 1 and not whole else keys
        block = numbers.to(query.device)
        distance, allowed, place = _locate_keys(attention_mask, visible_keys, block, present, queries)
        bias = None
        if attention_mask is not None and attention_mask.dtype != torch.bool:
            bias = attention_mask[:, :, block, :present]
        yield _Block(block, present, distance, allowed, (place >= 0) & (place < screening.sinks), bias)


def _weights(
    eager: Callable[..., Any] | None,
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    block: _Block,
    **kwargs: Any,
) -> torch.Tensor:
    """Softmax weights of a block of queries before screening, by the family's own dense attention."""
    if eager is None:
        raise ValueError(f"{type(module).__name__} names no dense attention of its own, which screening needs here.")
    bias = torch.zeros((), dtype=query.dtype, device=query.device) if block.bias is None else block.bias
    bias = bias.masked_fill(~block.allowed, torch.finfo(query.dtype).min)
    return eager(module, query, key, value, bias, **{**kwargs, "dropout": 0.0})[1]


def _observed(
    eager: Callable[..., Any] | None,
    module: nn.Module,
    query: torch.Tensor,
    unscaled_query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    visible_keys: torch.Tensor,
    **kwargs: Any,
) -> None:
    """Show the observer of this layer's screening the weights and the relevance; nothing is computed with them."""
    screening: Any = module.screening
    key, value = _present(attention_mask, query, key, value)
    rows = screening.observed_rows
    with torch.no_grad():
        for block in _blocks(screening, query, key.shape[2], attention_mask, visible_keys, rows, whole=True):
            weights = _weights(eager, module, query[:, :, block.rows], key, value, block, **kwargs)
            relevance = screening.relevance(unscaled_query[:, :, block.rows], key)
            accepted = screening.acceptance(relevance, block.distance, block.sinks) * block.allowed
            has_sink = hasattr(module, "sinks")
            kept = screening.weigh(accepted, weights, has_sink)
            located = (block.distance, block.allowed, block.sinks)
            screening.observer(Observation(block.rows, weights, relevance, *located, accepted, kept, value))


def _present(
    attention_mask: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The keys and values that are there: without a mask, a static cache holds room after the last query."""
    if attention_mask is None and query.shape[2] > 1:
        return key[:, :, : query.shape[2]], value[:, :, : query.shape[2]]
    if attention_mask is not None and (not isinstance(attention_mask, torch.Tensor) or attention_mask.dim() != 4):
        raise ValueError(
            f"screening needs a 4-D attention mask or none, not {type(attention_mask).__name__}; load the model with "
            'attn_implementation="sdpa" or "eager".'
        )
    return key, value


def _no_mask(name: str) -> str:
    return (
        f"screening needs a mask per head that is added to the scores, which the attention implementation {name!r} "
        'is not known to take. Load the model with attn_implementation="sdpa", "flex_attention" or "eager".'
    )


def _screened(
    name: str,
    backend: Callable[..., Any],
    eager: Callable[..., Any] | None,
    module: nn.Module,
    query: torch.Tensor,
    unscaled_query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Any,
    visible_keys: torch.Tensor,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Attention over the keys that :class:`Screening` accepts, in blocks of queries so that memory is bounded.

    Two ways give the same. The reference takes the family's own softmax weights, multiplies them by alpha and
    renormalises; it runs for the backend "eager", and where t, tau or w are to get gradients. The other gives ln alpha
    to the backend as an additive mask.

    Args:
        name: of the backend that is configured.
        backend, eager: that backend, and the family's own dense attention.
        unscaled_query: the query before SSMax's multiplier, from which the relevance follows.
        visible_keys: n of each query, ``(batch or 1, queries)``.
        kwargs: as the family's attention gives them to the backend.

    Returns:
        ``(batch, queries, heads, head_dim)``, and the weights where the backend is "eager".
    """
    screening: Any = module.screening
    if screening.kind() != "gated" and name not in ("sdpa", "eager"):
        raise ValueError(
            f"screening's form unit has no softmax that the attention implementation {name!r} could do. It runs "
            'through its own dense code: load the model with attn_implementation="sdpa" or "eager".'
        )
    reference = backend is eager or screening.learns() or screening.kind() != "gated"
    screening.path = _PATHS[screening.kind()] if reference else name
    if not reference and name == "flex_attention":
        whole = (query, unscaled_query, key, value, attention_mask, visible_keys)
        return _flexed(module, *whole, **kwargs), None
    if not reference and name != "sdpa":
        raise ValueError(_no_mask(name))
    key, value = _present(attention_mask, query, key, value)
    strange = [word for word in ("softcap", "position_bias", "s_aux") if kwargs.get(word) is not None]
    strange += ["dropout"] if module.training and kwargs.get("dropout") else []
    if not reference and attention_mask is None and not strange and not torch.is_grad_enabled():
        screening.path = f"{name} in bands"
        return _in_bands(backend, module, query, unscaled_query, key, value, visible_keys, **kwargs), None
    outputs, weights = [], []
    for block in _blocks(screening, query, key.shape[2], attention_mask, visible_keys):
        present = (key[:, :, : block.keys], value[:, :, : block.keys])
        tensors = (query[:, :, block.rows], unscaled_query[:, :, block.rows], *present)
        if reference:
            part: Callable[..., Any] = functools.partial(_reference, eager, module, block, **kwargs)
            # Kept for the way back, what a block computes for every pair of query and key would be gigabytes.
            output, kept, rejected = (
                checkpoint(part, *tensors, use_reentrant=False) if screening.learns() else part(*tensors)
            )
            if rejected is not None:
                screening.counter(rejected, int(block.allowed.sum()) * (len(query) // len(block.allowed)))
            if backend is eager:  # other backends give none
                weights.append(nn.functional.pad(kept, (0, key.shape[2] - block.keys)))
        else:
            output = _masked(backend, module, block, *tensors, **kwargs)
        outputs.append(output)
    return torch.cat(outputs, 1).contiguous(), torch.cat(weights, 2) if weights else None


def _reference(
    eager: Callable[..., Any] | None,
    module: nn.Module,
    block: _Block,
    query: torch.Tensor,
    unscaled_query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    members: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """A block of queries by the reference of :func:`_screened`.

    Args:
        eager: the family's own dense attention.
        query, unscaled_query: of the block, ``(batch, heads, rows, head_dim)``.
        key, value: of the block's keys.
        members: numbers of the query heads; all of them where absent.

    Returns:
        ``(batch, rows, heads, head_dim)``; the weights, for the block's keys; and the rejected keys per head, where
        they are asked for.
    """
    screening: Any = module.screening
    kind = screening.kind()
    whole = None if kind == "unit" else _weights(eager, module, query, key, value, block, **kwargs)
    relevance = screening.relevance(unscaled_query, key)
    accepted = screening.acceptance(relevance, block.distance, block.sinks, members) * block.allowed
    counts = screening.counter is not None and screening.learns()
    rejected = screening.count_rejected(relevance, accepted, block) if counts else None
    has_sink = hasattr(module, "sinks")
    kept = screening.weigh(accepted, whole, has_sink, members).to(value.dtype)
    kept = nn.functional.dropout(kept, kwargs.get("dropout", 0.0), module.training)
    groups = query.shape[1] // value.shape[1]
    output = kept @ value.repeat_interleave(groups, 1)
    if kind != "gated" or (screening.form == "unit" and screening.learns()):
        # At p = 1 it changes nothing, and gives gain and bound a gradient of zero rather than none.
        output = screening.finish(output, members)
    return output.transpose(1, 2), kept, rejected


# What a layer says that it ran, where it went through its own dense code.
_PATHS = {"gated": "reference", "unit": "reference, unit", "between": "reference, between gated and unit"}


def _masked(
    backend: Callable[..., Any],
    module: nn.Module,
    block: _Block,
    query: torch.Tensor,
    unscaled_query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    members: torch.Tensor | None = None,
    **kwargs: Any,
) -> torch.Tensor:
    """A block of queries by a backend that is given ln alpha as a mask; arguments as of :func:`_reference`."""
    screening: Any = module.screening
    relevance = screening.relevance(unscaled_query, key)
    accepted = screening.acceptance(relevance, block.distance, block.sinks, members) * block.allowed
    rejected = accepted == 0
    bias = accepted.masked_fill(rejected, 1.0).log().masked_fill(rejected, -torch.inf)
    survives = ~rejected.all(-1, keepdim=True)
    if block.bias is not None:
        bias = bias + block.bias
    # A row of -inf alone would give NaN. What it gives instead is multiplied by zero.
    bias = torch.where(survives, bias, torch.zeros_like(bias)).to(query.dtype)
    output, _ = backend(module, query, key, value, bias, **kwargs)
    return output * survives.transpose(1, 2)


def _in_bands(
    backend: Callable[..., Any],
    module: nn.Module,
    query: torch.Tensor,
    unscaled_query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    visible_keys: torch.Tensor,
    **kwargs: Any,
) -> torch.Tensor:
    """Attention without a mask, where each head is given only the keys that its window reaches, and the first ones.

    What lies outside the windows of all query heads of a key-value head is never touched: time falls with the share
    of the keys that are left. Open heads go to the backend whole, as without screening. For inference.
    """
    screening: Any = module.screening
    batch, heads, queries, _ = query.shape
    each = heads // key.shape[1]
    output = query.new_empty(batch, queries, heads, value.shape[-1])
    for band in screening.bands(key.shape[1]):
        members = torch.tensor([group * each + head for group in band.groups for head in range(each)])
        members = members.to(query.device)
        q, k, v = query[:, members], key[:, band.groups], value[:, band.groups]
        if band.window is None and band.accepting:
            output[:, :, members] = backend(module, q, k, v, None, **kwargs)[0]
        else:
            scale = kwargs["scaling"] if kwargs.get("scaling") is not None else query.shape[-1] ** -0.5
            raw = unscaled_query[:, members].float()
            # z = rho |k| times this: the length of the raw query, SSMax's multiplier and the usual scale.
            stretch = (q.float() * raw).sum(-1, keepdim=True) / raw.norm(dim=-1, keepdim=True).clamp(min=1e-12) * scale
            _band(screening, band, members, raw, stretch, k.float(), v.float(), visible_keys, output)
    return output


def _band(
    screening: Screening,
    band: _Band,
    members: torch.Tensor,
    query: torch.Tensor,
    stretch: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    visible_keys: torch.Tensor,
    output: torch.Tensor,
) -> None:
    """The heads of one band, written into ``output``. One product of matrices gives both the relevance and the scores.

    To go over the matrix of all pairs is what screening costs beyond softmax, so it is gone over in place and in blocks
    that a processor's cache can hold.

    Args:
        screening, band: what is accepted, and how far back the keys reach.
        members: numbers of the query heads.
        query: of these heads before SSMax's multiplier, ``(batch, heads, queries, head_dim)``, float32.
        stretch: what makes a score of a relevance and the length of its key, ``(batch, heads, queries, 1)``.
        key, value: of the band's key-value heads, float32.
        visible_keys: n of each query.
        output: ``(batch, queries, all heads, head_dim)``.
    """
    threshold, softness, log2_window = (value[members] for value in screening._of_all_heads())
    slope = 1 / softness.clamp(min=screening.HARD)
    windowed = bool((screening._windows_of(log2_window) < screening.full_window).any())
    if bool((log2_window == log2_window[0]).all()):
        log2_window = log2_window[:1]  # one mask for all heads
    batch, count, queries, size = query.shape
    groups, keys, sinks = key.shape[1], key.shape[2], screening.sinks
    # Several queries begin at the first key; a single one follows all keys of its cache.
    offset = keys - 1 if queries == 1 else 0
    query = nn.functional.normalize(query, dim=-1)
    length = key.norm(dim=-1).unsqueeze(2).clamp(min=1e-12)
    key = key / length.transpose(-1, -2)
    reach = keys if band.window is None else min(keys, band.window + sinks)
    step = max(1, min(queries, BLOCK_ELEMENTS // (batch * count * reach)))
    if band.window is not None:
        # The keys of a block reach from the first query's window to the last query: short blocks hold few in vain.
        step = min(step, max(64, band.window // 2))
    for start in range(0, queries, step):
        stop = min(start + step, queries)
        first, last = 0 if band.window is None else start + offset - band.window + 1, stop + offset
        chosen = _slices(first, last, sinks)
        numbers = torch.cat([torch.arange(part.start, part.stop, device=query.device) for part in chosen])
        near, near_value = (_taken(tensor, chosen, 2) for tensor in (key, value))
        near_length = _taken(length, chosen, 3)
        shape = (batch, count, stop - start, len(numbers))
        packed = query[:, :, start:stop].reshape(batch, groups, -1, size)
        relevance = packed @ near.transpose(-1, -2)
        weights = (relevance * near_length).view(shape)
        weights.mul_(stretch[:, :, start:stop])
        relevance = relevance.view(shape)
        if not band.accepting:
            relevance.sub_(threshold).mul_(slope).clamp_(0, 1)
            relevance.mul_(relevance)
        else:
            relevance.fill_(1.0)
        distance = torch.arange(start, stop, device=query.device)[:, None] + offset - numbers
        if windowed:
            relevance.mul_(screening._inside(distance, log2_window).to(relevance.dtype))
        # Which keys are the first of the document: at the front, unless positions say that they are long gone.
        place = visible_keys[:, None, start:stop, None].to(distance.dtype) - 1 - distance[:, :sinks]
        relevance[..., :sinks].masked_fill_((place >= 0) & (place < sinks) & (distance[:, :sinks] >= 0), 1.0)
        later = (numbers <= start + offset).sum()  # from this column on, some keys come after the query
        hidden = distance[:, later:] < 0
        relevance[..., later:].masked_fill_(hidden, 0.0)
        weights[..., later:].masked_fill_(hidden, -torch.inf)
        weights.sub_(weights.amax(-1, keepdim=True)).exp_().mul_(relevance)
        total = weights.sum(-1, keepdim=True)
        part = (weights.view(batch, groups, -1, len(numbers)) @ near_value).view(*shape[:3], -1)
        part = part / torch.where(total > 0, total, torch.ones_like(total))
        output[:, start:stop, members] = part.transpose(1, 2).to(output.dtype)


def _slices(first: int, last: int, sinks: int) -> list[slice]:
    """The keys from ``first`` to before ``last``, and the first ones of all."""
    return [slice(0, last)] if first <= sinks else [slice(0, sinks), slice(first, last)]


def _taken(tensor: torch.Tensor, chosen: list[slice], dimension: int) -> torch.Tensor:
    """Slices of a tensor, one after the other; a view where there is one."""
    parts = [tensor.narrow(dimension, part.start, part.stop - part.start) for part in chosen]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dimension)


def _renormalised(weights: torch.Tensor, accepted: torch.Tensor, has_sink: bool) -> torch.Tensor:
    """Weights times what is accepted, over what is left of their sum; zero where nothing is left.

    The sum is 1 - sum w (1 - alpha): exactly 1 where everything is accepted, and right also for a family with a
    learned sink, whose weights add up to less than one. Where little is left it is taken over the survivors instead,
    which is exact there.
    """
    weights = _at_least_float32(weights)
    if accepted.requires_grad:
        renormalised: torch.Tensor = _Renormalised.apply(weights, accepted, has_sink)
        return renormalised
    return weights * accepted / _left(weights, accepted, has_sink)


class _Renormalised(torch.autograd.Function):
    """:func:`_renormalised`, by hand for the sake of time, where what is accepted gets a gradient.

    Exact but for one thing: a rejected key far heavier than all survivors would pull at its threshold without bound,
    and is held to one. The gradient of the weights is that of a softmax's: right up to a constant in each row, which
    softmax's own gradient takes away.
    """

    @staticmethod
    def forward(ctx: Any, weights: torch.Tensor, accepted: torch.Tensor, has_sink: bool) -> torch.Tensor:
        divisor = _left(weights, accepted, has_sink)
        ctx.save_for_backward(weights, accepted, divisor)
        return (weights * accepted).div_(divisor)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        weights, accepted, divisor = ctx.saved_tensors
        mean = (gradient * weights * accepted).sum(-1, keepdim=True).div_(divisor)
        by_weights = (gradient * accepted).sub_((accepted - 1).mul_(mean)).div_(divisor)
        held = torch.where(accepted == 0, torch.minimum(weights, divisor), weights)
        return by_weights, held.mul_(gradient - mean).div_(divisor), None


def _left(weights: torch.Tensor, accepted: torch.Tensor, has_sink: bool) -> torch.Tensor:
    """The divisor of :func:`_renormalised`; one where it would be zero."""
    left = 1 - (weights * (1 - accepted)).sum(-1, keepdim=True)
    survivors = (weights * accepted).sum(-1, keepdim=True)
    if has_sink:
        survivors = survivors + 1 - weights.sum(-1, keepdim=True)
    divisor = torch.where(left > 0.5, left, survivors)
    return torch.where(survivors > 0, divisor, torch.ones_like(divisor))


# ------------------------------------------------------------------------------------------- FlexAttention


def _flexed(
    module: nn.Module,
    query: torch.Tensor,
    unscaled_query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Any,
    visible_keys: torch.Tensor,
    **kwargs: Any,
) -> torch.Tensor:
    """Screening as a modification of FlexAttention's scores, and a block mask without the blocks outside all windows.

    The products are those of the raw query and key, so that their precision is the backend's own; the relevance and
    the scores follow from them by the lengths of both. For inference; arguments as of :func:`_screened`.
    """
    from transformers.integrations import flex_attention

    screening: Any = module.screening
    strange = [word for word in ("position_bias", "s_aux") if kwargs.get(word) is not None]
    if strange or (torch.is_grad_enabled() and (query.requires_grad or key.requires_grad or value.requires_grad)):
        why = f"with {strange[0]}" if strange else "where gradients are to flow through it"
        raise ValueError(
            f'screening does not run in FlexAttention {why}: use attn_implementation="eager", or "sdpa" if the family '
            "has it."
        )
    if not isinstance(attention_mask, flex_attention.BlockMask):
        raise ValueError(f"screening in FlexAttention needs its block mask, not {type(attention_mask).__name__}.")
    batch, heads, queries, size = query.shape
    keys, each, sinks = key.shape[2], heads // key.shape[1], screening.sinks
    places = (visible_keys - 1).expand(batch, queries)
    key_places = places if keys == queries else _places(attention_mask, places, keys)
    if getattr(module, CHUNK, None) is not None:  # counted back from the last query, over the beginning of its chunk
        key_places = key_places % getattr(module, CHUNK)
    threshold, softness, log2_window = (one.flatten() for one in screening._of_all_heads())
    windows = screening._windows_of(log2_window)
    windows = windows.masked_fill(windows >= screening.full_window, torch.inf)
    slope = 1 / softness.clamp(min=screening.HARD)
    raw = unscaled_query.float()
    square = raw.square().sum(-1).clamp(min=1e-24)
    scale = kwargs["scaling"] if kwargs.get("scaling") is not None else size**-0.5
    stretch = (query.float() * raw).sum(-1) / square * scale  # SSMax's multiplier and the usual scale
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
    for part in numbers.split(max(1, BLOCK_ELEMENTS // (batch * keys))):
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


# ------------------------------------------------------------------------------------------- windowed cache


class _Kept(NamedTuple):
    """What is kept of some key-value heads that share a window.

    Attributes:
        groups: numbers of the key-value heads.
        window: how many keys back their query heads look, themselves included; None: at all keys.
        keys, values: ``(batch, groups, kept, head_dim)``.
        columns: which keys of the sequence they are, ``(batch or 1, kept)``, rising; -1 where a row holds fewer.
        sinks: which of them are the first of their document, of the same shape.
    """

    groups: list[int]
    window: int | None
    keys: torch.Tensor
    values: torch.Tensor
    columns: torch.Tensor
    sinks: torch.Tensor

    def each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> _Kept:
        """With every tensor that has the batch's rows changed."""
        rows = [change(one) if len(one) > 1 else one for one in (self.columns, self.sinks)]
        return _Kept(self.groups, self.window, change(self.keys), change(self.values), *rows)


class _Noted(NamedTuple):
    """What a cache is told of the tokens that a forward pass adds; see :meth:`WindowedCache.note`."""

    real: torch.Tensor
    first: torch.Tensor
    plain: bool


class _KeptKeys(torch.Tensor):
    """Stands for all keys (or values) of a layer where a family's code passes them on; holds those that were kept.

    Nothing but operated attention can compute with it, and everything else that tries stops with an error.
    """

    kept: list[_Kept]

    @classmethod
    def of(cls, kept: list[_Kept], like: torch.Tensor, length: int) -> _KeptKeys:
        """Of the shape of all keys, in the memory of one number."""
        batch, groups, _, size = like.shape
        made = like.new_full((1,), torch.nan).expand(batch, groups, length, size).as_subclass(cls)
        made.kept = kept
        return made

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Shape, dtype and device may be asked for."""
        name = func.__name__
        name = getattr(func.__self__, "__name__", name) if name == "__get__" else name
        if name in ("shape", "ndim", "dtype", "device", "layout", "is_cuda", "size", "dim", "is_floating_point"):
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **(kwargs or {}))
        raise RuntimeError(
            f"{name} was asked of the keys of a windowed cache, which holds only those "
            "inside the windows. This family's code needs all of them: use a cache of another kind."
        )


class WindowedLayer(CacheLayerMixin):
    """Keys and values of one screened layer: of each key-value head those inside its window, and the first ones.

    A key-value head is as wide as the widest window of its query heads; where one of them looks at all keys, all are
    kept. Rows of a batch may be padded: windows count real keys only, and every row keeps the first keys of its own.
    """

    def __init__(self, windows: list[int | None], sinks: int) -> None:
        """``windows``: of each query head, None where it has none; ``sinks``: first keys that are kept."""
        super().__init__()
        self.windows, self.first_keys = windows, sinks
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self.kept: list[_Kept] = []
        self.noted: _Noted | None = None
        self.length = 0
        self.plain = True  # whether every row holds the same columns
        self.is_initialized = False

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Make room for the key-value heads that there are, sorted by their windows."""
        self.dtype, self.device = key_states.dtype, key_states.device
        count = key_states.shape[1]
        each = len(self.windows) // count
        members: dict[int | None, list[int]] = {}
        for group in range(count):
            own = self.windows[group * each : (group + 1) * each]
            widest = None if None in own else max(window for window in own if window is not None)
            members.setdefault(widest, []).append(group)
        none = torch.empty(1, 0, dtype=torch.long, device=self.device)
        self.kept = [
            _Kept(groups, window, key_states[:, groups, :0], value_states[:, groups, :0], none, none.bool())
            for window, groups in members.items()
        ]
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Add keys and values, drop what no later query can look at, and return what these queries may look at."""
        noted, self.noted = self.noted, None
        if noted is None:
            raise RuntimeError("a windowed cache works in the forward pass of its own model alone")
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        past, added = self.length, key_states.shape[-2]
        self.length = past + added
        self.plain = self.plain and noted.plain
        numbers = torch.arange(past, self.length, device=key_states.device)[None]
        columns = numbers if self.plain else numbers.masked_fill(~noted.real, -1)
        now = []
        for number, old in enumerate(self.kept):
            new = _Kept(
                old.groups, old.window, key_states[:, old.groups], value_states[:, old.groups], columns, noted.first
            )
            whole = new if past == 0 else self._joined(self._trimmed(old, key_states.shape[0]), new)
            now.append(whole)
            # A single token is trimmed when the next one comes, which saves a copy of the window.
            self.kept[number] = whole if added == 1 else self._trimmed(whole, key_states.shape[0])
        if past == 0 or [part.window for part in now] == [None]:
            # The first call brings all keys itself; and a layer without windows has all.
            whole = now[0]
            return (key_states, value_states) if past == 0 else (whole.keys, whole.values)
        return tuple(_KeptKeys.of(now, states, self.length) for states in (key_states, value_states))  # type: ignore[return-value]

    def _joined(self, old: _Kept, new: _Kept) -> _Kept:
        rows = max(len(old.columns), len(new.columns))
        columns, sinks = (
            torch.cat([a.expand(rows, -1), b.expand(rows, -1)], -1)
            for a, b in ((old.columns, new.columns), (old.sinks, new.sinks))
        )
        keys, values = torch.cat([old.keys, new.keys], 2), torch.cat([old.values, new.values], 2)
        return _Kept(old.groups, old.window, keys, values, columns, sinks)

    def _trimmed(self, kept: _Kept, batch: int) -> _Kept:
        """Without the keys that no query after the last one can look at; in new memory where any are dropped."""
        if kept.window is None:
            return kept
        count, room = kept.columns.shape[-1], self.first_keys + kept.window - 1
        if count <= room:
            return kept
        if self.plain:
            parts = [slice(0, self.first_keys), slice(count - kept.window + 1, count)]
            taken = [_taken(tensor, parts, 2) for tensor in (kept.keys, kept.values)]
            return _Kept(kept.groups, kept.window, *taken, *(_taken(one, parts, 1) for one in kept[4:]))
        columns, sinks = (one.expand(batch, -1) for one in kept[4:])
        real = columns >= 0
        later = real.flip(-1).cumsum(-1).flip(-1) - real.long()  # real keys after this one
        columns = columns.masked_fill(~(real & (sinks | (later < kept.window - 1))), -1)
        order = columns.argsort(-1)[:, count - room :]  # those to be dropped come first

        def gathered(tensor: torch.Tensor) -> torch.Tensor:
            return tensor.gather(2, order[:, None, :, None].expand(-1, tensor.shape[1], -1, tensor.shape[3]))

        tensors = (gathered(kept.keys), gathered(kept.values), columns.gather(1, order), sinks.gather(1, order))
        return _Kept(kept.groups, kept.window, *tensors)

    def nbytes(self) -> int:
        """Memory of the keys and values, in bytes."""
        return sum(tensor.numel() * tensor.element_size() for kept in self.kept for tensor in (kept.keys, kept.values))

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """As if all keys were there: masks are made for all, and each head takes its columns."""
        return self.length + query_length, 0

    def get_seq_length(self) -> int:
        """How many tokens have been seen."""
        return self.length

    def get_max_length(self) -> int:
        """No bound."""
        return -1

    def _each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self.kept = [kept.each(change) for kept in self.kept]

    def offload(self) -> None:
        """To the processor's memory."""
        self._each(lambda tensor: tensor.to("cpu", non_blocking=True))

    def prefetch(self) -> None:
        """Back to the device."""
        self._each(lambda tensor: tensor.to(self.device, non_blocking=True))

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """Rows in another order, for beam search."""
        self._each(lambda tensor: tensor.index_select(0, beam_idx.to(tensor.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Every row several times."""
        self._each(lambda tensor: tensor.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Some of the rows."""
        self._each(lambda tensor: tensor[indices, ...])

    def crop(self, tokens_to_remove: int) -> None:
        """Refused: keys that a shorter sequence needs are gone."""
        if tokens_to_remove != 0:
            raise ValueError(
                "a windowed cache cannot be rolled back, as assisted generation asks for: what lies outside the "
                "windows is gone. Set config.windowed_cache = False."
            )


class WindowedCache(DynamicCache):
    """transformers' cache for a screened model, whose screened layers keep only what windows can reach.

    What a query is answered is the same as with all keys in the cache. Other layers are as in ``DynamicCache``.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        """``model``: with screening on some layers; its windows must not grow while the cache is in use."""
        super().__init__(config=model.config)
        module: Any
        screened: dict[int, Screening] = {}
        for module in model.modules():
            if isinstance(getattr(module, "screening", None), Screening) and not hasattr(module, "sinks"):
                screened[int(module.layer_idx)] = module.screening
        windowed = 0
        for number, screening in screened.items():
            if type(self.layers[number]) is DynamicLayer and screening.enabled:
                windows = screening.reach(screening.num_heads).windows
                self.layers[number] = WindowedLayer(windows, screening.sinks)
                windowed += 1
        if not windowed:
            raise ValueError(
                "windowed_cache needs a layer with screening whose cache is an ordinary one: not of a sliding or "
                "recurrent layer, and without learned sinks. This model has none; set config.windowed_cache = False."
            )

    def note(self, attention_mask: Any, visible_keys: torch.Tensor) -> None:
        """What the model is about to run on, so that layers know which keys are real and which come first.

        Args:
            attention_mask: as the base model is given it: ``(batch, past + length)``, or None.
            visible_keys: n of the new tokens, ``(batch or 1, length)``.
        """
        past, added = self.get_seq_length(), visible_keys.shape[-1]
        if attention_mask is not None and (not isinstance(attention_mask, torch.Tensor) or attention_mask.dim() != 2):
            raise ValueError("windowed_cache works with a 2-D attention mask or none.")
        real = torch.ones_like(visible_keys, dtype=torch.bool)
        if attention_mask is not None:
            if attention_mask.shape[-1] != past + added:
                raise ValueError(
                    f"the attention mask covers {attention_mask.shape[-1]} tokens, but {past} are in the windowed "
                    f"cache and {added} are new."
                )
            real = attention_mask[:, past:].to(visible_keys.device) != 0
            visible_keys, real = torch.broadcast_tensors(visible_keys, real)
        places = torch.arange(past + 1, past + added + 1, device=visible_keys.device)
        plain = bool(real.all()) and bool((visible_keys == places).all())
        if plain:
            visible_keys, real = visible_keys[:1], real[:1]
        for layer in self.layers:
            if isinstance(layer, WindowedLayer):
                layer.noted = _Noted(real, visible_keys <= layer.first_keys, plain)

    def nbytes(self) -> int:
        """Memory of all keys and values, in bytes."""
        total = 0
        layer: Any
        for layer in self.layers:
            if isinstance(layer, WindowedLayer):
                total += layer.nbytes()
            elif getattr(layer, "keys", None) is not None:
                total += layer.keys.nbytes + layer.values.nbytes
        return total


def _with_kept_keys(
    name: str,
    backend: Callable[..., Any],
    eager: Callable[..., Any] | None,
    module: nn.Module,
    query: torch.Tensor,
    unscaled_query: torch.Tensor,
    key: Any,
    value: Any,
    attention_mask: Any,
    visible_keys: torch.Tensor,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention over what a :class:`WindowedLayer` has kept; arguments as of :func:`_screened`."""
    screening: Any = getattr(module, "screening", None)
    watched = screening is not None and (screening.observer is not None or screening.counter is not None)
    if screening is None or not screening.enabled or watched:
        raise ValueError(
            "a windowed cache no longer holds the keys that attention without screening, or counting, looks at."
        )
    reach = screening.reach(key.shape[1])
    for kept in key.kept:
        asked = [reach.windows[group] for group in kept.groups]
        if kept.window is not None and any(window is None or window > kept.window for window in asked):
            raise ValueError("windows have grown since this windowed cache was made: begin with a new one.")
    if name not in ("sdpa", "eager"):
        raise ValueError(_no_mask(name))
    kind = screening.kind()
    screening.path = f"{name if kind == 'gated' else _PATHS[kind]} with kept keys"
    dense = backend is eager or kind != "gated"
    each, total = query.shape[1] // key.shape[1], key.shape[2]
    _, _ = _present(attention_mask, query[:, :, :1], key, value)
    output = query.new_empty(query.shape[0], query.shape[2], query.shape[1], value.shape[-1])
    for block in _blocks(screening, query, total, attention_mask, visible_keys, whole=True):
        for kept in key.kept:
            members = torch.tensor([group * each + head for group in kept.groups for head in range(each)])
            members = members.to(query.device)
            q, unscaled = (one[:, members][:, :, block.rows] for one in (query, unscaled_query))
            k, v = kept.keys, kept.values
            if kept.window is None and not dense and all(reach.accepting[group] for group in kept.groups):
                mask = None if attention_mask is None else attention_mask[:, :, block.rows]
                part = backend(module, q, k, v, mask, **kwargs)[0]
            else:
                located = block if kept.window is None else block.at(kept.columns)
                tensors = (located, q, unscaled, k, v, members)
                if dense:
                    part = _reference(eager, module, *tensors, **kwargs)[0]
                else:
                    part = _masked(backend, module, *tensors, **kwargs)
            output[:, block.rows[:, None], members] = part
    return output, None


# Operations that the family's own class performs as config.json says; they have no module.
IN_CONFIG_ALONE = ("rope",)


# --------------------------------------------------------------------------------------------- attention modules


def _operated(
    name: str,
    backend: Callable[..., Any],
    eager: Callable[..., Any] | None,
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Any,
    **kwargs: Any,
) -> Any:
    """Multiply the query ``(batch, heads, queries, head_dim)`` by m(n), screen the keys, and call the backend."""
    visible_keys = kwargs.pop(VISIBLE_KEYS, None)
    if visible_keys is None:
        visible_keys = getattr(module, VISIBLE_KEYS, None)  # see _relay_class
    ssmax: Any = getattr(module, "ssmax", None)
    screening: Any = getattr(module, "screening", None)
    scales = ssmax is not None and ssmax.enabled
    screens = screening is not None and screening.enabled
    if visible_keys is None and (scales or screens):
        raise RuntimeError(
            f"{type(module).__name__} was called without the number of visible keys: call it through its model, "
            f"or pass {VISIBLE_KEYS}=count_visible_keys(...)."
        )
    chunk = getattr(module, CHUNK, None)
    if chunk is not None and visible_keys is not None:
        visible_keys = _in_chunk(visible_keys, chunk, attention_mask)
    unscaled_query = query
    if scales:
        # Some families build the window into the mask alone, and keep it on the module.
        window = kwargs.get("sliding_window", getattr(module, "sliding_window", None))
        multiplier = ssmax(visible_keys.to(query.device), window)
        query = (query * multiplier).to(query.dtype)
    if isinstance(key, _KeptKeys):
        return _with_kept_keys(
            name, backend, eager, module, query, unscaled_query, key, value, attention_mask, visible_keys, **kwargs
        )
    if screens:
        tensors = (query, unscaled_query, key, value, attention_mask, visible_keys.to(query.device))
        if screening.observer is not None:
            _observed(eager, module, *tensors, **kwargs)
        if screening.learns() or not screening.is_open():
            return _screened(name, backend, eager, module, *tensors, **kwargs)
        screening.path = "open"
    return backend(module, query, key, value, attention_mask, **kwargs)


class _OperatedBackends:
    """Stands where a family's attention looks up ``ALL_ATTENTION_FUNCTIONS``, and wraps whatever it finds there."""

    def __init__(self, backends: Any) -> None:
        self._backends = backends

    def get_interface(self, name: str, default: Callable[..., Any]) -> Callable[..., Any]:
        return functools.partial(_operated, name, self._backends.get_interface(name, default), default)

    def __getitem__(self, name: str) -> Callable[..., Any]:
        return functools.partial(_operated, name, self._backends[name], None)


@functools.cache
def _attention_class(stock: type[nn.Module]) -> type[nn.Module]:
    """Subclass of a family's attention class whose forward finds :class:`_OperatedBackends`."""
    rebound = _rebound(stock.forward)
    if rebound is None:
        raise ImportError(
            f"{stock.__module__}.{stock.__name__}.forward does not look up ALL_ATTENTION_FUNCTIONS in this version of "
            f"transformers ({transformers.__version__}); the operation would be lost, so the model is not loaded. "
            "A newer model-surgery may know how: `surgery refresh` brings this file up to date."
        )
    return _made(_attention_class, stock, stock, {"forward": rebound, "_operated_attention": True})


def _rebound(function: Any) -> types.FunctionType | None:
    """A copy of a function, decorators and all, that finds :class:`_OperatedBackends`; None if it looks up no backend.

    A decorator's wrapper holds the function that it wraps in its closure: a copy of it is given the copy.
    """
    if not isinstance(function, types.FunctionType):
        return None
    scope, closure = function.__globals__, function.__closure__
    if "ALL_ATTENTION_FUNCTIONS" in function.__code__.co_names:
        scope = dict(scope)
        # torch.compile looks globals up in the module that __name__ names; this scope is not that module's.
        del scope["__name__"]
        scope["ALL_ATTENTION_FUNCTIONS"] = _OperatedBackends(scope["ALL_ATTENTION_FUNCTIONS"])
        wrapped = None
    else:
        inner = getattr(function, "__wrapped__", None)
        wrapped = _rebound(inner)
        if wrapped is None or not any(cell.cell_contents is inner for cell in closure or ()):
            return None
        closure = tuple(types.CellType(wrapped) if cell.cell_contents is inner else cell for cell in closure or ())
    rebound = types.FunctionType(function.__code__, scope, function.__name__, function.__defaults__, closure)
    rebound.__kwdefaults__ = function.__kwdefaults__
    rebound.__annotations__ = function.__annotations__
    rebound.__doc__ = function.__doc__
    rebound.__module__ = __name__
    if wrapped is not None:
        rebound.__wrapped__ = wrapped  # type: ignore[attr-defined]
    return rebound


def _made(maker: Callable[..., Any], stock: type[nn.Module], base: type[Any], namespace: dict[str, Any]) -> type[Any]:
    """A subclass that is made when it is asked for; no import finds it by name, so it says how it is pickled."""

    def reduce(module: nn.Module) -> tuple[Any, ...]:
        return _new_module, (maker.__name__, stock), module.__getstate__()

    bases = (stock,) if base is stock else (base, stock)
    return type(PREFIX + stock.__name__, bases, {**namespace, "__reduce__": reduce, "__module__": __name__})


def _new_module(maker: str, stock: type[nn.Module]) -> nn.Module:
    made: Any = globals()[maker](stock)
    return made.__new__(made)


@functools.cache
def _relay_class(stock: type[nn.Module]) -> type[nn.Module]:
    """Subclass of a family's layer that keeps keywords to itself: it hands n to its attention all the same.

    n is bound to the call (not to the module) until the layer runs, so that gradient checkpointing, which runs it
    again later, runs it with the same n.
    """

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        kwargs.setdefault(VISIBLE_KEYS, getattr(self.surgery_counted[0], VISIBLE_KEYS, None))
        return stock.__call__(self, *args, **kwargs)

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        setattr(self.surgery_operated[0], VISIBLE_KEYS, kwargs.pop(VISIBLE_KEYS, None))
        return stock.forward(self, *args, **kwargs)

    return _made(_relay_class, stock, stock, {"__call__": call, "forward": forward})


@functools.cache
def _counting_class(stock: type[nn.Module]) -> type[nn.Module]:
    """Subclass of the module inside a base model whose forward runs the layers; it counts the keys."""
    return _made(_counting_class, stock, _InnerModel, {"_positional_names": _positional_names(stock)})


def base_model_of(model: Any) -> Any:
    """The base model inside a model with a head, which is itself its base model where it holds no other.

    Llama 4's class names another attribute for it than the one that it is in.
    """
    for name in (model.base_model_prefix, "model"):
        if isinstance(getattr(model, name, None), nn.Module):
            return getattr(model, name)
    return model


def _chunk_of(config: PreTrainedConfig, layer: int) -> int | None:
    """How many keys make a chunk, in a layer where a query sees those of its own chunk alone."""
    labels = getattr(config, "layer_types", None) or ()
    chunked = layer < len(labels) and labels[layer] == "chunked_attention"
    return int(config.attention_chunk_size) if chunked else None


def _install(base_model: nn.Module, config: PreTrainedConfig) -> None:
    """Put the operations of ``config.surgery`` on the attention modules of a base model."""
    block: dict[str, Any] = config.surgery
    counted: Any = base_model.get_submodule(block.get("counted_at", ""))
    if not isinstance(counted, _Counting):
        counted.__class__ = _counting_class(type(counted))  # type: ignore[arg-type]
    counted.surgery_counts, counted.surgery_relays = True, block.get("relay", False)
    text_config = config.get_text_config()
    for options in block["operations"]:
        if options["name"] in IN_CONFIG_ALONE:
            continue
        operation = OPERATIONS.get(options["name"])
        if operation is None:
            raise ValueError(
                f"operation {options['name']!r} is not known to this modelling file "
                f"({', '.join(sorted(OPERATIONS))}); `surgery refresh` rewrites it to the current version."
            )
        for layer in options["layers"]:
            attention = base_model.get_submodule(block["attention"].format(layer=layer))
            if hasattr(attention, options["name"]):
                continue
            setattr(attention, options["name"], operation(options, text_config.num_attention_heads))
            if (chunk := _chunk_of(text_config, layer)) is not None:
                setattr(attention, CHUNK, chunk)
            if hasattr(type(attention), "_operated_attention"):
                continue
            attention.__class__ = _attention_class(type(attention))  # type: ignore[arg-type]
            if block.get("relay"):
                stem, number, _ = block["attention"].partition("{layer}")
                around: Any = base_model.get_submodule(stem + number.format(layer=layer))
                # In lists, so that torch does not take them for submodules of the layer.
                around.surgery_counted, around.surgery_operated = [counted], [attention]
                around.__class__ = _relay_class(type(around))  # type: ignore[arg-type]
    if not block.get("relay"):
        _keep_n_from_others(base_model, block["attention"], text_config.num_hidden_layers)


def _keep_n_from_others(base_model: nn.Module, path: str, count: int) -> None:
    """Let the attention of other layers take n off its keywords too: a serving engine's attention may not know it."""
    for layer in range(count):
        try:
            attention = base_model.get_submodule(path.format(layer=layer))
        except AttributeError:
            continue  # a layer of a hybrid that has none
        if not hasattr(type(attention), "_operated_attention") and _asks_for_a_backend(type(attention)):  # type: ignore[arg-type]
            attention.__class__ = _attention_class(type(attention))  # type: ignore[arg-type]


@functools.cache
def _asks_for_a_backend(stock: type[nn.Module]) -> bool:
    return _rebound(stock.forward) is not None


def operate(model: PreTrainedModel, block: dict[str, Any]) -> None:
    """Put operations on a model in memory, at their start values; ``block`` is as ``surgery`` in config.json."""
    base_model = base_model_of(model)
    model.config.surgery = block
    if base_model is not model and not isinstance(base_model, SurgeryModelMixin):
        base_model.__class__ = _class_for(PREFIX + type(base_model).__name__)
    _install(base_model, model.config)
    base_model.to(model.device)


# ----------------------------------------------------------------------------------------------- the model classes


def lock(config: dict[str, Any]) -> dict[str, Any]:
    """A copy of the config that a stock class refuses to load.

    A stock class would drop the new tensors with a printed line. So ``surgery.locks`` of config.json names entries
    with a value that makes it stop (``lock``), what the model's own value is (``was``; absent if it has none), and in
    which part of the config they stand, in a model of several parts (``inside``).
    """
    locked = dict(config)
    block = config.get("surgery") or {}
    for name, entry in block.get("locks", {}).items():
        entry.pop("was", None)
        holder = _holder(locked, entry)
        if name in holder:
            entry["was"] = holder[name]
        holder[name] = entry["lock"]
    return locked


def unlock(config: dict[str, Any]) -> dict[str, Any]:
    """The inverse of :func:`lock`: the config as the family's own class reads it."""
    opened = dict(config)
    block = config.get("surgery") or {}
    for name, entry in block.get("locks", {}).items():
        holder = _holder(opened, entry)
        holder.pop(name, None)
        if "was" in entry:
            holder[name] = entry["was"]
    return opened


def _holder(config: dict[str, Any], entry: dict[str, Any]) -> dict[str, Any]:
    """Where a lock's key stands: a copy, put into the config, of the part that it is inside, if there is that part."""
    part = config.get(entry.get("inside", ""))
    if not isinstance(part, dict):
        return config
    config[entry["inside"]] = dict(part)
    return config[entry["inside"]]


class SurgeryConfigMixin:
    """A family's config with the block ``surgery``; takes the locks off on load and puts them on when saving.

    ``windowed_cache = True``, in config.json or given to ``from_pretrained``, makes :class:`WindowedCache` the cache of
    ``generate`` and of a forward pass that is given none.
    """

    windowed_cache = False

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As transformers' own, for a config.json that is locked."""
        config_dict = unlock(config_dict)
        version = config_dict.get("surgery", {}).get("format_version")
        if version is not None and version > FORMAT_VERSION:
            raise ValueError(
                f"This checkpoint has format version {version}; this modelling file reads up to {FORMAT_VERSION}. "
                "Install a newer `model-surgery`, or load it with the modelling file that came with it."
            )
        _register_auto_classes(cls)
        return super().from_dict(config_dict, **kwargs)  # type: ignore[misc]

    def to_json_string(self, *args: Any, **kwargs: Any) -> str:
        """As transformers' own, locked again: a stock class refuses what is saved, as it refused what was loaded."""
        content = json.loads(super().to_json_string(*args, **kwargs))  # type: ignore[misc]
        return json.dumps(lock(content), indent=2, sort_keys=True) + "\n"


class _InitialValues:
    """Operations start at the values that config.json gives; everything else as the family initialises it."""

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if not isinstance(module, tuple(OPERATIONS.values())):
            super()._init_weights(module)  # type: ignore[misc]
        elif not all(getattr(parameter, "_is_hf_initialized", False) for parameter in module.parameters()):
            module.reset_parameters()  # type: ignore[operator]

    @classmethod
    def is_custom_code(cls) -> bool:
        """No: the weights are initialised by the family's own code, by its rules.

        For custom code transformers passes over modules that hold no parameter themselves, and some families fill
        their buffers there (Falcon-H1): they would stay uninitialised memory.
        """
        return False

    # transformers reads the source of a class's module to learn what can be set on it, and this file would say that no
    # experts run grouped: a loop over them, slower and rounded otherwise. So the family's own class is asked.
    @classmethod
    def _can_set_experts_implementation(cls) -> bool:
        return bool(_stock_class(cls)._can_set_experts_implementation())

    @classmethod
    def _can_set_attn_implementation(cls) -> bool:
        return bool(_stock_class(cls)._can_set_attn_implementation())


def _stock_class(operated: type) -> Any:
    """The class of transformers that an operated one is a subclass of."""
    return next(base for base in operated.__mro__ if base.__module__.startswith("transformers.models."))


def _positional_names(stock: type[nn.Module]) -> tuple[str, ...]:
    return tuple(inspect.signature(stock.forward).parameters)[1:]


def _cache_in(kwargs: dict[str, Any]) -> Any:
    """The cache among the keywords of a call, by either name; None where there is none."""
    return next((kwargs[name] for name in CACHE_NAMES if kwargs.get(name) is not None), None)


class _Counting:
    """The module whose forward runs the layers: counts the visible keys once per call and passes them on."""

    surgery_counts = False  # on the one module that does
    surgery_relays = False  # whether it keeps n for layers that take no keyword

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As the family's own forward."""
        if not self.surgery_counts:
            return super().forward(*args, **kwargs)  # type: ignore[misc]
        kwargs.update(zip(self._positional_names, args))  # type: ignore[attr-defined]  # noqa: B905
        tokens, embeddings = kwargs.get("input_ids"), kwargs.get("inputs_embeds")
        inputs = tokens if tokens is not None else embeddings
        cache = _cache_in(kwargs)
        if cache is None and getattr(self.config, "windowed_cache", False) and self._fills_a_cache(kwargs):  # type: ignore[attr-defined]
            name = next(name for name in CACHE_NAMES if name in self._positional_names)  # type: ignore[attr-defined]
            cache = kwargs[name] = WindowedCache(self)  # type: ignore[arg-type]
        if inputs is not None and VISIBLE_KEYS not in kwargs:
            kwargs[VISIBLE_KEYS] = count_visible_keys(
                length=inputs.shape[1],
                device=inputs.device,
                attention_mask=kwargs.get("attention_mask"),
                position_ids=kwargs.get("position_ids"),
                past_length=cache.get_seq_length() if cache is not None else 0,
            )
            if self.surgery_relays:
                setattr(self, VISIBLE_KEYS, kwargs[VISIBLE_KEYS])
        if isinstance(cache, WindowedCache):
            cache.note(kwargs.get("attention_mask"), kwargs[VISIBLE_KEYS])
        return super().forward(**kwargs)  # type: ignore[misc]

    def _fills_a_cache(self, kwargs: dict[str, Any]) -> bool:
        asked = kwargs.get("use_cache")
        return not self.training and (self.config.use_cache if asked is None else asked)  # type: ignore[attr-defined]


class _InnerModel(_InitialValues, _Counting):
    """The part of a base model whose forward runs the layers, where that is not the base model itself."""


class SurgeryModelMixin(_InitialValues, _Counting):
    """Base model: carries the operations, and counts unless a module inside it does."""

    def post_init(self) -> None:
        """Install the operations before transformers initialises weights and collects dtype rules."""
        _install(self, self.config)  # type: ignore[attr-defined,arg-type]
        super().post_init()  # type: ignore[misc]


class SurgeryHeadMixin(_InitialValues):
    """Model with a language-modelling head, around the base model."""

    def post_init(self) -> None:
        """Turn the base model into its operated class, then let transformers finish as usual."""
        base_model = self.base_model
        if not isinstance(base_model, (SurgeryModelMixin, SurgeryHeadMixin)):
            base_model.__class__ = _class_for(PREFIX + type(base_model).__name__)
        _install(base_model, self.config)  # type: ignore[attr-defined]
        super().post_init()  # type: ignore[misc]

    @property
    def base_model(self) -> Any:
        """As transformers' own, where a class names the right attribute."""
        return base_model_of(self)

    def _prepare_cache_for_generation(
        self, generation_config: Any, model_kwargs: Any, *args: Any, **kwargs: Any
    ) -> None:
        """As transformers' own; its default cache becomes a windowed one where the config says so."""
        given = _cache_in(model_kwargs)
        super()._prepare_cache_for_generation(generation_config, model_kwargs, *args, **kwargs)  # type: ignore[misc]
        cache = _cache_in(model_kwargs)
        wanted = self.config.windowed_cache and given is None and not generation_config.is_assistant  # type: ignore[attr-defined]
        if wanted and type(cache) is DynamicCache and not cache.offloading:
            name = next(name for name in CACHE_NAMES if model_kwargs.get(name) is cache)
            model_kwargs[name] = WindowedCache(self)  # type: ignore[arg-type]


class _StrictLoading:
    """Tensors that are missing or left over are an error here, never a printed line."""

    @classmethod
    def from_pretrained(cls, name: Any, *args: Any, **kwargs: Any) -> Any:
        """As transformers' own."""
        wants_info = kwargs.pop("output_loading_info", False)
        model, info = super().from_pretrained(name, *args, output_loading_info=True, **kwargs)  # type: ignore[misc]
        # A base model leaves the head's tensors of the same file unread, rightly.
        is_base = isinstance(model, SurgeryModelMixin)
        unexpected = [] if is_base else sorted(info["unexpected_keys"])
        problems = {
            "missing": sorted(info["missing_keys"]),
            "unexpected": unexpected,
            "mismatched": sorted(str(key) for key in info["mismatched_keys"]),
        }
        found = "; ".join(f"{kind}: {', '.join(keys[:8])}" for kind, keys in problems.items() if keys)
        if found:
            raise ValueError(f"{name}: the tensors do not fit the model. {found}")
        return (model, info) if wants_info else model


@functools.cache
def _class_for(name: str) -> type:
    """``Surgery<X>`` for a config, base model or causal language model class ``<X>`` of transformers."""
    stock: Any = getattr(transformers, name.removeprefix(PREFIX), None) if name.startswith(PREFIX) else None
    if not isinstance(stock, type):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    namespace: dict[str, Any] = {"__module__": __name__, "__doc__": f"{stock.__name__} with operated attention."}
    if issubclass(stock, PreTrainedConfig):
        namespace |= {"model_type": MODEL_TYPE_PREFIX + stock.model_type, "_auto_class": "AutoConfig"}
        return type(name, (SurgeryConfigMixin, stock), namespace)
    if not issubclass(stock, PreTrainedModel):
        raise AttributeError(f"{stock.__name__} is neither a config nor a model class of transformers")

    stock_config: Any = stock.config_class
    config_class = _class_for(PREFIX + stock_config.__name__)
    is_head = hasattr(stock, "prepare_inputs_for_generation") and stock.can_generate()
    namespace |= {
        "config_class": config_class,
        "_auto_class": "AutoModelForCausalLM" if is_head else "AutoModel",
        "_keep_in_fp32_modules_strict": {*(stock._keep_in_fp32_modules_strict or ()), *OPERATIONS},
    }
    if not is_head:
        namespace["_positional_names"] = _positional_names(stock)
    mixin = SurgeryHeadMixin if is_head else SurgeryModelMixin
    _register_conversions(stock_config.model_type, stock.__name__)
    return type(name, (_StrictLoading, mixin, stock), namespace)


def _register_conversions(model_type: str, class_name: str) -> None:
    """transformers skips a family's checkpoint conversions (merged experts, renames) for code that is not its own."""
    from transformers import conversion_mapping

    for stock, own in ((model_type, MODEL_TYPE_PREFIX + model_type), (class_name, PREFIX + class_name)):
        conversions = conversion_mapping.get_checkpoint_conversion_mapping(stock)
        if conversions is not None:
            conversion_mapping.register_checkpoint_conversion_mapping(own, conversions, overwrite=True)


def _register_auto_classes(config_class: type) -> None:
    """Tell the auto classes which model belongs to an operated config that the installed package registered."""
    from transformers import AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    if CONFIG_MAPPING._extra_content.get(config_class.model_type) is not config_class:  # type: ignore[attr-defined]
        return
    stock = config_class.__mro__[2]
    auto: Any
    for auto in (AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText):
        # A model of vision and language answers to AutoModelForCausalLM too, as it does by auto_map.
        known = (AutoModelForImageTextToText, auto) if auto is AutoModelForCausalLM else (auto,)
        models: list[Any] = [other._model_mapping[stock] for other in known if stock in other._model_mapping]
        if models and config_class not in auto._model_mapping._extra_content:
            auto.register(config_class, _class_for(PREFIX + models[0].__name__), exist_ok=True)


def __getattr__(name: str) -> Any:
    if not name.startswith(PREFIX):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return _class_for(name)
