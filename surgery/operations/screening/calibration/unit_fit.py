"""Start values of the form ``unit``: a least-squares fit of each head's output to the output of its attention.

The texts go through the source model twice. The first pass tries every threshold and window of a coarse grid, each with
its best gain. The second pass fits gain and bound for the pairs around the best one, and takes the best of these. No
gradient is needed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from surgery.evaluation.passages import Passage
from surgery.loading.head import last_logits_only
from surgery.operations.screening import UNIT_PARAMETERS, open_start
from surgery.operations.screening.calibration.observation import sample_rows, screening_modules

Values = dict[str, list[list[float]]]
Candidates = list[list[list[tuple[float, float]]]]
OnTokens = Callable[[int, str], None]

THRESHOLDS = tuple(step / 10 for step in range(-6, 10))
# Powers of four: a choice between closer windows would be noise, because the soft mask is wide.
WINDOWS = tuple(2 * 4**step for step in range(12))
# Steps around the best pair: of the threshold, and of log2 of the window.
NEAR_THRESHOLDS = tuple(step / 40 for step in range(-3, 4))
NEAR_WINDOWS = (-1.0, 0.0, 1.0)
# Powers of two to try for the gain and the bound, around the values of a plain scale.
HALVES = torch.arange(-4, 13) / 2
# Least gain of a head, because a head without gain cannot learn.
LEAST_GAIN = 1e-4


@dataclass(frozen=True)
class Fit:
    """Values by parameter, layer and head; the share of rejected keys, and the error, of each head.

    ``missed`` is the squared error over the sampled queries, divided by the square of attention's output.
    """

    values: Values
    rejected: list[list[float]]
    missed: list[list[float]]


def choose_bounds(
    model: Any, passages: Sequence[Passage], full_window: int, rows: int, seed: int, on_tokens: OnTokens
) -> Values:
    """The threshold and window of every head with which a scaled unit is closest to the head's output.

    Args:
        model: open, in the form ``unit`` at p = 1, where it equals the source.
        passages: observed passages.
        full_window: the window that rejects no key.
        rows: sampled queries in each passage.
        seed: of the sample of queries.
        on_tokens: called with finished work, in tokens, and the current step in words.
    """
    longest = max(len(passage.tokens) for passage in passages)
    windows = (*(window for window in WINDOWS if 2 * window <= longest and window < full_window), full_window)
    sums: dict[int, torch.Tensor] = {}

    def look(layer: int, block: Any) -> None:
        """Add |H|^2 and H . o of every head, threshold and window; H is the sum of the unit, o the output."""
        masks = torch.stack([_softmask(block, window, full_window) for window in windows])
        heads, groups = block.weights.shape[1], block.value.shape[1]
        found = torch.zeros(heads, len(THRESHOLDS), len(windows), 2, dtype=torch.float64)
        for head in range(heads):
            value = block.value[0, head // (heads // groups)].float()
            output = block.weights[0, head].float() @ value
            for number, threshold in enumerate(THRESHOLDS):
                summed = (_ramp(block.relevance[0, head], threshold) * masks) @ value
                parts = (summed * summed).sum((1, 2)), (summed * output).sum((1, 2))
                found[head, number] = torch.stack(parts, -1).double().cpu()
        sums[layer] = sums.get(layer, 0) + found

    _run(model, passages, rows, seed, look, on_tokens, "fitting thresholds and windows")
    values: Values = {"threshold": [], "log2_window": []}
    for layer in sorted(sums):
        square, along = sums[layer].unbind(-1)
        gained = torch.where(along > 0, along.square() / square.clamp(min=1e-30), torch.zeros_like(along))
        best = gained.flatten(1).argmax(-1).tolist()
        full = open_start(full_window)["log2_window"]
        chosen = [windows[index % len(windows)] for index in best]
        values["threshold"].append([THRESHOLDS[index // len(windows)] for index in best])
        values["log2_window"].append([full if window == full_window else math.log2(window) for window in chosen])
    return values


def nearby_candidates(edges: Values, full_window: int) -> Candidates:
    """Thresholds and windows near those of every head; a full window stays full, and thresholds stay below 1."""
    return [
        [
            [
                (min(threshold + by, 0.95), octaves if 2**octaves >= full_window else max(0.0, octaves + more))
                for by in NEAR_THRESHOLDS
                for more in (NEAR_WINDOWS if 2**octaves < full_window else (0.0,))
            ]
            for threshold, octaves in zip(*heads, strict=True)
        ]
        for heads in zip(edges["threshold"], edges["log2_window"], strict=True)
    ]


def fixed_candidates(edges: Values) -> Candidates:
    """Only the given thresholds and windows."""
    return [
        [[pair] for pair in zip(*heads, strict=True)]
        for heads in zip(edges["threshold"], edges["log2_window"], strict=True)
    ]


def fit_gains(
    model: Any,
    passages: Sequence[Passage],
    candidates: Candidates,
    full_window: int,
    rows: int,
    seed: int,
    on_tokens: OnTokens,
) -> Fit:
    """The best candidate of every head, with its gain and bound.

    The output of the unit has the direction of its sum H and the length bound tanh(gain |H| / bound). The arguments are
    those of :func:`choose_bounds`; ``candidates`` has pairs of threshold and log2_window for every layer and head.
    """
    seen: dict[int, list[list[torch.Tensor]]] = {}
    order = list(screening_modules(model))

    def look(layer: int, block: Any) -> None:
        """Keep |H|, o along H, |o|^2, rejected keys and all keys, of every query, head and candidate."""
        heads, groups = block.weights.shape[1], block.value.shape[1]
        allowed = block.allowed[0, 0].expand(block.weights.shape[2], -1)
        keys = allowed.sum(-1)
        masks: dict[float, torch.Tensor] = {}
        for head in range(heads):
            value = block.value[0, head // (heads // groups)].float()
            output = block.weights[0, head].float() @ value
            noted = []
            for threshold, octaves in candidates[order.index(layer)][head]:
                if octaves not in masks:
                    masks[octaves] = _softmask(block, round(2.0**octaves), full_window)
                accepted = _ramp(block.relevance[0, head], threshold) * masks[octaves]
                summed = accepted @ value
                length = summed.norm(dim=-1)
                along = (summed * output).sum(-1) / length.clamp(min=1e-12)
                dropped = keys - ((accepted > 0) & allowed).sum(-1)
                noted.append(torch.stack([length, along, output.square().sum(-1), dropped, keys], -1))
            seen.setdefault(layer, [[] for _ in range(heads)])[head].append(torch.stack(noted).double().cpu())

    _run(model, passages, rows, seed, look, on_tokens, "fitting gains")
    values: Values = {name: [] for name in UNIT_PARAMETERS}
    rejected, missed = [], []
    for pairs, layer in zip(candidates, order, strict=True):
        best = []
        for head, blocks in enumerate(seen[layer]):
            fitted = [_fit_lengths(*found.unbind(-1)) for found in torch.cat(blocks, 1)]
            number = min(range(len(fitted)), key=lambda one: fitted[one].missed)
            best.append((*pairs[head][number], fitted[number]))
        values["threshold"].append([threshold for threshold, _, _ in best])
        # For the bridge: the ramp of the unit ends at a cosine of 1.
        values["softness"].append([1 - threshold for threshold, _, _ in best])
        values["log2_window"].append([octaves for _, octaves, _ in best])
        values["log2_gain"].append([found.log2_gain for _, _, found in best])
        values["log2_bound"].append([found.log2_bound for _, _, found in best])
        rejected.append([found.rejected for _, _, found in best])
        missed.append([found.missed for _, _, found in best])
    return Fit(values, rejected, missed)


class _Lengths(NamedTuple):
    """The fit of one head; see :class:`Fit`."""

    log2_gain: float
    log2_bound: float
    rejected: float
    missed: float


def _fit_lengths(
    length: torch.Tensor, along: torch.Tensor, square: torch.Tensor, dropped: torch.Tensor, keys: torch.Tensor
) -> _Lengths:
    """Gain and bound of one head, from the values of each query."""
    plain = max(float((length * along).sum() / length.square().sum().clamp(min=1e-30)), LEAST_GAIN)
    size = max(float(square.mean().sqrt()), 1e-6)
    gain, bound = (plain * HALVES.exp2())[:, None, None], (size * HALVES.exp2())[:, None]
    reached = bound * (gain * length / bound).tanh()
    error = (reached.square() - 2 * reached * along).sum(-1) + square.sum()
    best = int(error.argmin())
    return _Lengths(
        math.log2(plain) + float(HALVES[best // len(HALVES)]),
        math.log2(size) + float(HALVES[best % len(HALVES)]),
        float(dropped.sum() / keys.sum()),
        float(error.min() / square.sum().clamp(min=1e-30)),
    )


def _ramp(relevance: torch.Tensor, threshold: float) -> torch.Tensor:
    """The unit's trim-and-square, clamp((rho - t) / (1 - t), 0, 1)^2."""
    return ((relevance.float() - threshold) / (1 - threshold)).clamp(0, 1).square()


def _softmask(block: Any, window: int, full_window: int) -> torch.Tensor:
    """(1 + cos(pi distance / w)) / 2 for the allowed keys below w, ``(queries, keys)``; 1 for a full window."""
    distance = block.distance[0, 0]
    inside = block.allowed[0, 0].float()
    if window >= full_window:
        return inside
    return inside * (distance < window) * (1 + (math.pi * distance.clamp(0, window) / window).cos()) / 2


@torch.no_grad()
def _run(
    model: Any,
    passages: Sequence[Passage],
    rows: int,
    seed: int,
    look: Callable[[int, Any], None],
    on_tokens: OnTokens,
    what: str,
) -> None:
    """Call ``look`` with the layer number and the observed block, for a sample of queries of every passage."""
    from surgery.runtime import base_model_of

    generator = torch.Generator().manual_seed(seed)
    base = base_model_of(model)
    for passage in passages:
        chosen = sample_rows(len(passage.tokens), rows, generator)
        with _observed(model, chosen, look):
            # Only the layers are observed, so the logits are limited: Llama 4's base model with images has a head.
            tokens = torch.tensor([passage.tokens], device=model.device)
            base(input_ids=tokens, use_cache=False, **last_logits_only(base))
        on_tokens(len(passage.tokens), f"{what}: {passage.document}")


@contextmanager
def _observed(model: Any, rows: torch.Tensor, look: Callable[[int, Any], None]) -> Iterator[None]:
    layers = {number: screening for number, (_, screening) in screening_modules(model).items()}

    def watch(layer: int) -> Any:
        return lambda block: look(layer, block)

    for layer, screening in layers.items():
        screening.observer, screening.observed_rows = watch(layer), rows
    try:
        yield
    finally:
        for screening in layers.values():
            screening.observer = screening.observed_rows = None
