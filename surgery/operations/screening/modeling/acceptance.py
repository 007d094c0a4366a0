# Copyright 2026 The surgery authors. Licensed under the Apache License, Version 2.0.
"""What screening accepts of each key, from its relevance and its distance."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn

from surgery.operations.screening.modeling.blocks import Block
from surgery.operations.screening.modeling.gradients import (
    HARD,
    at_least_float32,
    divisor_of,
    renormalised,
    trimmed_square,
)
from surgery.runtime.operation import OperationModule

# The gradient of the number of rejected keys samples one query in this number.
COUNTED_EVERY = 8


class Observation(NamedTuple):
    """What an observer of :class:`Acceptance` is shown: a block of queries, before anything is rejected.

    Attributes:
        rows: numbers of the block's queries in this call.
        weights: softmax weights, ``(batch, heads, queries, keys)``.
        relevance: rho, of the same shape.
        distance: allowed keys between key and query, ``(batch or 1, 1, queries, keys)``.
        allowed: which keys the query may attend to at all, of the same shape as ``distance``.
        sinks: the first keys of the document, which are always kept; of the same shape.
        acceptance: alpha and window as the module has them now, ``(batch, heads, queries, keys)``.
        kept: weights by which the values are summed, of the same shape; a row need not sum to one.
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


class Band(NamedTuple):
    """Key-value heads with windows of one size; see :meth:`Acceptance.bands`.

    Attributes:
        window: how many keys back their query heads look; None for all keys.
        accepting: whether no threshold of theirs rejects a key.
        groups: numbers of the key-value heads.
        same: whether all their query heads have this window.
    """

    window: int | None
    accepting: bool
    groups: list[int]
    same: bool

    def members(self, each: int) -> list[int]:
        """Numbers of the query heads, ``each`` per key-value head."""
        return [group * each + head for group in self.groups for head in range(each)]


class Reach(NamedTuple):
    """What each key-value head may see.

    Attributes:
        windows: the widest window of its query heads; None for no window.
        accepting: whether no threshold of its query heads rejects a key.
        same: whether all its query heads have one window.
    """

    windows: list[int | None]
    accepting: list[bool]
    same: list[bool]


class Acceptance(OperationModule):
    """Rejects keys: per query head an absolute threshold on the relevance, and a window on the distance.

    The relevance of key j to query i is rho = cos(q_i, k_j), after norms and RoPE, before any multiplier of the query.
    The share of a key that is accepted is ::

        alpha = clamp((rho - t) / tau, 0, 1)^2   for the keys at a distance below w, else 0

    (the trim-and-square of arXiv 2604.01178), and 1 for the first ``sinks`` keys of the document, or of the chunk in a
    layer that has chunks. The weights are softmax(z) times alpha, renormalised over what survives; if no key does, the
    head outputs zero.

    Learned per head, float32: ``threshold`` t, ``softness`` tau (0 or less is hard: all or nothing), and
    ``log2_window``, whose power of two, rounded, is w. From ``full_window`` on, a window bounds nothing.
    A head with t < -1 - tau and a full window is open: it accepts everything.

    Where alpha saturates its gradient is zero, and an edge in integers has none. A surrogate takes its place: t and
    tau get the gradient of sigmoid((rho - t - tau/2) / (max(tau, 0.1)/4)) where alpha is 0 or 1, and the window that
    of sigmoid(4 (log2 w - log2(distance + 1))), only within an octave of its edge: a text teaches nothing to a
    window that is much longer. Rejected keys are counted with a gradient too: :meth:`count_rejected`.

    All of this is the form ``gated``. The form ``unit`` has three numbers more: ``log2_gain``, ``log2_bound`` and the
    exponent ``renormalisation`` p, from 1 to 0, which is set and never learned. At p = 0 it is the screening unit of
    arXiv 2604.01178 on the pretrained projections, with no softmax, no renormalisation and no kept first keys::

        alpha = clamp((rho - t) / (1 - t), 0, 1)^2 (1 + cos(pi distance / w)) / 2    below w, else 0
        y     = gain sum_j alpha_j v_j
        out   = bound tanh(|y| / bound) y / |y|

    From ``full_window`` on the distance does not count; its gradient stays that of the cosine. At p = 1 it is
    ``gated``. Between the two, with m the cosine term, S the sum of e^z alpha over the keys, and the alpha of a
    first key raised to p + (1 - p) alpha::

        tau = p softness + (1 - p)(1 - t),   alpha = ramp^2 m^(1 - p)
        y   = gain^(1 - p) sum_j alpha_j (e^z_j / S)^p v_j
        out = p y + (1 - p) bound tanh(|y| / bound) y / |y|
    """

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
        self._known: dict[int, tuple[Any, Reach]] = {}
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

    def mixes(self) -> bool:
        """Whether a head has both softmax and the unit, which is so only on the way from one to the other."""
        return self.kind() == "between" and bool(((self.exponents() > 0) & (self.exponents() < 1)).any())

    def is_open(self) -> bool:
        """Whether every head accepts every key, by softmax. Looked up again only after a parameter has changed."""
        if self.kind() != "gated":
            return False
        each = self.reach(self.num_heads)
        return all(each.accepting) and all(window is None for window in each.windows)

    def bands(self, groups: int) -> list[Band]:
        """The key-value heads, ``groups`` in all, grouped by the keys that their query heads look at."""
        found: dict[tuple[int | None, bool, bool], list[int]] = {}
        for group, (window, accepting, same) in enumerate(zip(*self.reach(groups), strict=True)):
            # Windows with thresholds inside are rounded up to powers of two, so that there are few bands; each head
            # keeps its own edge.
            alike = same and accepting
            width = window if window is None or alike else 2 ** math.ceil(math.log2(window))
            found.setdefault((width, accepting, alike), []).append(group)
        return [Band(width, accepting, members, same) for (width, accepting, same), members in found.items()]

    def reach(self, groups: int) -> Reach:
        """What the key-value heads, ``groups`` in all, may see. Computed again only after a parameter has changed."""
        parameters = (self.threshold, self.softness, self.log2_window)
        # Tensors made under torch.inference_mode count no versions; they are looked at each time.
        counted = not any(parameter.is_inference() for parameter in parameters)
        state = tuple((id(parameter), parameter._version) for parameter in parameters) if counted else None
        known = self._known.get(groups)
        if state is None or known is None or known[0] != state:
            threshold, softness, log2_window = (value.flatten() for value in self.of_all_heads())
            windows_of_heads = self.windows_of(log2_window).clamp(max=self.full_window).view(groups, -1)
            widest = windows_of_heads.amax(-1).tolist()
            same = (windows_of_heads.amin(-1) == windows_of_heads.amax(-1)).tolist()
            accepting = (threshold < -1 - softness).view(groups, -1).all(-1).tolist()
            windows = [None if window >= self.full_window else int(window) for window in widest]
            known = self._known[groups] = (state, Reach(windows, accepting, same))
        return known[1]

    def learns(self) -> bool:
        """Whether threshold, softness or window get gradients now."""
        return torch.is_grad_enabled() and any(parameter.requires_grad for parameter in self.parameters())

    def windows(self) -> torch.Tensor:
        """w per chosen head, in keys: whole numbers, float32."""
        return self.windows_of(self.log2_window)

    def relevance(self, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        """rho ``(batch, heads, queries, keys)``, float32 or more, of each query head against the keys of its group."""
        batch, heads, length, size = query.shape
        query = nn.functional.normalize(at_least_float32(query), dim=-1).reshape(batch, key.shape[1], -1, size)
        key = nn.functional.normalize(at_least_float32(key), dim=-1)
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
        values = self.of_all_heads()
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
        inside = self.inside(distance, log2_window)
        if self.learns():
            return trimmed_square(relevance, threshold, softness, log2_window, distance, sinks, inside)
        ramp = ((relevance - threshold) / softness.clamp(min=HARD)).clamp(0, 1)
        return (ramp * ramp * inside).masked_fill(sinks, 1.0)

    def _softmask(self, distance: torch.Tensor, log2_window: torch.Tensor, exponent: torch.Tensor) -> torch.Tensor:
        """((1 + cos(pi distance / w)) / 2)^(1 - p), and 1 from the full window on, ``(batch or 1, heads, ...)``.

        w counts as its whole number and has the gradient of 2^log2_window; a full window that of the cosine.
        """
        window, whole = log2_window.exp2(), self.windows_of(log2_window)
        part = (distance.clamp(min=0) / (window + (whole - window).detach())).clamp(max=1.0)
        cosine = (math.pi / 2 * part).cos().clamp(min=1e-12)
        mask = cosine.square() if self.kind() == "unit" else cosine.pow(2 * (1 - exponent))
        full = torch.where(whole >= self.full_window, 1 - mask, torch.zeros_like(mask)).detach()
        return mask + full

    def fading(self, distance: torch.Tensor, log2_window: torch.Tensor) -> torch.Tensor:
        """The distance's share of a unit's alpha, ``(heads, ...)``: the cosine inside the window, else 0."""
        exponent = torch.zeros((), device=distance.device)
        return self._softmask(distance, log2_window, exponent) * self.inside(distance, log2_window)

    def weigh(
        self, accepted: torch.Tensor, weights: torch.Tensor | None, has_sink: bool, members: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Weights by which the values are summed: renormalised over the accepted keys, and in the form ``unit``
        alpha (e^z / S)^p; see the class.

        Args:
            accepted: alpha, ``(batch, heads, queries, keys)``.
            weights: softmax weights of the same shape; not used if no head has softmax (``kind() == "unit"``).
            has_sink: whether the family has a learned sink, whose share is in S.
            members: numbers of the query heads; all of them where absent.
        """
        if self.kind() == "unit":
            return accepted
        assert weights is not None
        if self.kind() == "gated":
            return renormalised(weights, accepted, has_sink)
        exponent = self.exponents() if members is None else self.exponents()[members]
        weights = at_least_float32(weights)
        share = weights / divisor_of(weights, accepted, has_sink)
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

    def count_rejected(
        self, relevance: torch.Tensor, accepted: torch.Tensor, block: Block, members: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Rejected keys per head ``(heads,)``: the exact number, with a gradient that reaches t and w.

        A number has no gradient. It gets that of a soft count, in which the share of a key that is accepted is
        1/2 + x / (2 (1 + |x|)), x = (rho - t) / (max(tau, 0.1)/4), and sigmoid(4 (log2 w - log2(distance + 1)))
        within an octave of the window's edge. So a key moves t whether it is just accepted or just rejected, and, by
        the long tails, also if t is far below all keys, as in an open head. Only every eighth query is counted so.
        Relevance gets no gradient: otherwise keys would learn to be irrelevant.

        Args:
            relevance: rho, ``(batch, heads, queries, keys)``.
            accepted: alpha within the window, zero for keys that are not allowed; of the same shape.
            block: where the keys are.
            members: numbers of the query heads; all of them where absent.
        """
        values = self.of_all_heads()
        threshold, softness, log2_window = values if members is None else (value[members] for value in values)
        with torch.no_grad():
            number = ((accepted == 0) & block.allowed).sum((0, 2, 3)).float()
            every = slice(None, None, COUNTED_EVERY)
            relevance, distance = relevance[:, :, every], block.distance[:, :, every]
            free = (block.allowed & ~block.sinks)[:, :, every]
            each = len(block.rows) / relevance.shape[2]
            width = softness.clamp(min=0.1) / 4
            away = 1 + ((relevance - threshold) / width).abs()
            inside = free & self.inside(distance, log2_window)
            by_threshold = (each * inside / (2 * width * away * away)).sum((0, 2, 3))
            octaves = log2_window - (distance.clamp(min=0) + 1).to(relevance.dtype).log2()
            edge = torch.sigmoid(4 * octaves)
            at_edge = free & (octaves.abs() < 1) & (relevance > threshold)
            by_window = (4 * each * edge * (1 - edge) * at_edge).sum((0, 2, 3))
        # What is added is zero, and has the gradient alone: no matrix of pairs is kept for it.
        of_t, of_w = (value.flatten() - value.detach().flatten() for value in (threshold, log2_window))
        return number + by_threshold * of_t - by_window * of_w

    def of_all_heads(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
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

    def inside(self, distance: torch.Tensor, log2_window: torch.Tensor) -> torch.Tensor:
        """Which keys lie inside the window of each head."""
        windows = self.windows_of(log2_window)
        return (distance < windows) | (windows >= self.full_window)

    @staticmethod
    def windows_of(log2_window: torch.Tensor) -> torch.Tensor:
        """w in keys: whole numbers, float32."""
        return log2_window.detach().exp2().round().clamp(min=1)

    def extra_repr(self) -> str:
        """What print(model) shows."""
        return f"form={self.form}, sinks={self.sinks}, heads={self.num_heads if self.heads is None else self.heads}"
