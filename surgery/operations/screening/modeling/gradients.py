# Copyright 2026 The surgery authors. Licensed under the Apache License, Version 2.0.
"""Acceptance and renormalisation of weights, with gradients written by hand."""

from __future__ import annotations

from typing import Any

import torch

HARD = 1e-7  # the softness that stands for none: one step of float32
SOFT = 1e-3  # below it the exact gradient is too steep to be of use, and the surrogate takes its place


def at_least_float32(tensor: torch.Tensor) -> torch.Tensor:
    """In float32, or in its own dtype if that is wider."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def trimmed_square(
    relevance: torch.Tensor,
    threshold: torch.Tensor,
    softness: torch.Tensor,
    log2_window: torch.Tensor,
    distance: torch.Tensor,
    sinks: torch.Tensor,
    inside: torch.Tensor,
) -> torch.Tensor:
    """The ramp squared inside the window, 1 for ``sinks``, with the gradients of :class:`_TrimmedSquare`."""
    alpha: torch.Tensor = _TrimmedSquare.apply(relevance, threshold, softness, log2_window, distance, sinks, inside)
    return alpha


class _TrimmedSquare(torch.autograd.Function):
    """``Acceptance.acceptance`` with the gradients that its class documents.

    Written by hand because autograd passes several times as often over the matrix of all pairs, which takes most of the
    time of training. Arguments as there; ``threshold``, ``softness`` and ``log2_window`` are ``(heads, 1, 1)``.
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
        ramp = _TrimmedSquare.ramp(relevance, threshold, softness)
        return ramp.mul_(ramp).mul_(inside).masked_fill_(sinks, 1.0)

    @staticmethod
    def ramp(relevance: torch.Tensor, threshold: torch.Tensor, softness: torch.Tensor) -> torch.Tensor:
        return (relevance - threshold).div_(softness.clamp(min=HARD)).clamp_(0, 1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        relevance, threshold, softness, log2_window, distance, sinks, inside = ctx.saved_tensors
        gradient = gradient.masked_fill(sinks, 0.0)
        ramp = _TrimmedSquare.ramp(relevance, threshold, softness)

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
        exact = (ramp > 0) & (ramp < 1) & (softness >= SOFT)
        slope = torch.where(exact, ramp * (2 / softness.clamp(min=HARD)), soft)
        pulled = gradient.mul_(inside).mul_(slope)
        of_softness = pulled * torch.where(exact, ramp, 0.5)
        by_threshold, by_softness = (
            -total.sum((0, 2, 3)).view_as(threshold).to(threshold.dtype) for total in (pulled, of_softness)
        )
        return pulled.mul_(exact), by_threshold, by_softness, by_window, None, None, None


def renormalised(weights: torch.Tensor, accepted: torch.Tensor, has_sink: bool) -> torch.Tensor:
    """Weights times what is accepted, over what is left of their sum; zero where nothing is left.

    The sum is 1 - sum w (1 - alpha): exactly 1 where everything is accepted, and right also for a family with a
    learned sink, whose weights add up to less than one. Where little is left it is taken over the survivors instead,
    which is exact there.
    """
    weights = at_least_float32(weights)
    if accepted.requires_grad:
        renormalised: torch.Tensor = _Renormalised.apply(weights, accepted, has_sink)
        return renormalised
    return weights * accepted / divisor_of(weights, accepted, has_sink)


class _Renormalised(torch.autograd.Function):
    """:func:`renormalised`, by hand for the sake of time, where what is accepted gets a gradient.

    Exact but for one thing: a rejected key far heavier than all survivors would pull at its threshold without bound,
    and is held to one. The gradient of the weights is that of a softmax's: right up to a constant in each row, which
    softmax's own gradient takes away.
    """

    @staticmethod
    def forward(ctx: Any, weights: torch.Tensor, accepted: torch.Tensor, has_sink: bool) -> torch.Tensor:
        divisor = divisor_of(weights, accepted, has_sink)
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


def divisor_of(weights: torch.Tensor, accepted: torch.Tensor, has_sink: bool) -> torch.Tensor:
    """The divisor of :func:`renormalised`; one where it would be zero."""
    left = 1 - (weights * (1 - accepted)).sum(-1, keepdim=True)
    survivors = (weights * accepted).sum(-1, keepdim=True)
    if has_sink:
        survivors = survivors + 1 - weights.sum(-1, keepdim=True)
    divisor = torch.where(left > 0.5, left, survivors)
    return torch.where(survivors > 0, divisor, torch.ones_like(divisor))
