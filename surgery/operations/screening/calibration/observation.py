"""One forward and backward pass over a passage: the effect of each head's keys on the loss, for a sample of queries."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from surgery.loading.head import LOGITS_AT_ONCE, base_output, head_logits, vocabulary, with_hidden
from surgery.loading.model import recompute
from surgery.operations.screening.calibration.grid import Grid, PassageSums, sum_over_keys, sum_over_windows

# Longer passages, in tokens, do not keep activations: the backward pass computes them again, layer by layer.
LONGEST_KEPT = 1536


def screening_modules(model: Any) -> dict[int, tuple[Any, Any]]:
    """The attention module and the screening module of each screened layer, by layer number."""
    found = {}
    for module in model.modules():
        if hasattr(module, "screening") and hasattr(module, "layer_idx"):
            found[int(module.layer_idx)] = (module, module.screening)
    return dict(sorted(found.items()))


def sample_rows(length: int, count: int, generator: torch.Generator) -> torch.Tensor:
    """Positions of ``count`` queries: one drawn from each of ``count`` equal parts of the sequence."""
    count = min(count, length)
    edges = torch.linspace(0, length, count + 1)
    drawn = edges[:-1] + torch.rand(count, generator=generator) * (edges[1:] - edges[:-1])
    return drawn.long().clamp(max=length - 1).unique()


def observe_passage(model: Any, tokens: torch.Tensor, grid: Grid, rows: torch.Tensor) -> PassageSums:
    """The keys that every threshold and window rejects in one passage, and the estimated effect on its loss.

    The model's screening is open. A forward pass gives the attention weights, a backward pass the gradient g of the
    summed loss by each head's output. A small change of the output changes the loss by its product with g. Its square,
    summed over queries, is the estimate of the empirical Fisher information for the increase of the loss.

    Args:
        model: a causal language model with screening on its layers; its parameters need no gradient.
        tokens: ``(1, length)``.
        grid: thresholds and windows.
        rows: positions of the sampled queries.
    """
    layers = screening_modules(model)
    sums = PassageSums((len(layers), next(iter(layers.values()))[1].num_heads, *grid.shape))
    again = tokens.shape[1] > LONGEST_KEPT
    with ExitStack() as stack:
        observers = stack.enter_context(ExitStack())
        for number, (attention, screening) in enumerate(layers.values()):
            _Watcher(sums, number, grid, screening, rows).attach(attention, stack, observers)
        if again:
            recompute(model, True)
            model.train()
            stack.callback(model.eval)
            stack.callback(recompute, model, False)
        # What the backward pass computes again has been seen.
        _backward(model, tokens, on_forward=observers.close)
    sums.queries, sums.places = len(rows), rows.numpy()
    return sums


class _Seen(NamedTuple):
    """What is kept of an observation until the gradient arrives; ``relevance`` only for a grid with thresholds."""

    rows: torch.Tensor
    weights: torch.Tensor
    relevance: torch.Tensor | None
    distance: torch.Tensor
    allowed: torch.Tensor
    sinks: torch.Tensor
    value: torch.Tensor


class _Watcher:
    """Keeps the attention weights of one layer until the gradient arrives, then adds them to the sums."""

    def __init__(self, sums: PassageSums, number: int, grid: Grid, screening: Any, rows: torch.Tensor) -> None:
        self.sums, self.number, self.grid, self.screening, self.rows = sums, number, grid, screening, rows
        self.seen: list[_Seen] = []
        self.output: torch.Tensor | None = None

    def attach(self, attention: Any, stack: ExitStack, observers: ExitStack) -> None:
        """Observe the layer until ``observers`` is closed, and wait for its gradient until ``stack`` is."""
        self.screening.observer, self.screening.observed_rows = self._show, self.rows

        def detach() -> None:
            self.screening.observer = self.screening.observed_rows = None

        observers.callback(detach)
        # The projection of the heads' outputs runs last, and families give it several names.
        for child in attention.children():
            if getattr(child, "weight", None) is not None and child.weight.dim() == 2:
                stack.callback(child.register_forward_pre_hook(self._input).remove)
        stack.callback(attention.register_forward_pre_hook(self._begin).remove)
        stack.callback(attention.register_forward_hook(self._end).remove)

    def _begin(self, module: Any, arguments: Any) -> None:
        self.seen, self.output = [], None

    def _show(self, observation: Any) -> None:
        relevance = observation.relevance if len(self.grid.thresholds) > 1 else None
        located = (observation.distance.int(), observation.allowed, observation.sinks)
        self.seen.append(_Seen(observation.rows, observation.weights, relevance, *located, observation.value))

    def _input(self, module: Any, arguments: Any) -> None:
        self.output = arguments[0]

    def _end(self, module: Any, arguments: Any, result: Any) -> None:
        if self.output is not None and self.output.requires_grad:
            seen = self.seen
            self.output.register_hook(lambda gradient: self._arrived(gradient, seen))
        self.seen, self.output = [], None

    @torch.no_grad()
    def _arrived(self, gradient: torch.Tensor, seen: list[_Seen]) -> None:
        heads = self.screening.num_heads
        gradient = gradient.reshape(gradient.shape[0], gradient.shape[1], heads, -1)
        sums = self.sums
        for block in seen:
            if self.number == 0:
                sums.keys += float(block.allowed.sum())
            own = gradient[0, block.rows].float().transpose(0, 1)
            value = block.value[0].float().repeat_interleave(heads // block.value.shape[1], 0)
            if block.relevance is None:
                self._add_windows(block, own @ value.transpose(-1, -2))
            else:
                self._add_all(block, own, value)

    def _add_all(self, block: _Seen, gradient: torch.Tensor, value: torch.Tensor) -> None:
        """Add a block for every threshold and window, head by head, since all cells of a head take much memory."""
        assert block.relevance is not None
        sums, free = self.sums, block.allowed & ~block.sinks
        for head in range(len(gradient)):
            found = sum_over_keys(
                self.grid,
                block.weights[0, head].float() * block.allowed[0, 0],
                block.relevance[0, head],
                block.distance[0, 0],
                free[0, 0],
                gradient[head] @ value[head].T,
            )
            for total, values in zip((sums.rejected, sums.mass, sums.squared_change), found, strict=True):
                total[self.number, head] += values.cpu().numpy()

    def _add_windows(self, block: _Seen, pull: torch.Tensor) -> None:
        """Add a block for every window, and keep the changes of its queries."""
        sums = self.sums
        weights = block.weights[0].float() * block.allowed[0]
        free = (block.allowed & ~block.sinks)[0, 0]
        rejected, mass, changed = sum_over_windows(self.grid, weights, block.distance[0, 0], free, pull)
        sums.rejected[self.number] += rejected.cpu().numpy()
        sums.mass[self.number, :, 0] += mass.cpu().numpy()
        sums.squared_change[self.number, :, 0] += changed.double().square().sum(1).cpu().numpy()
        groups = block.value.shape[1]
        of_groups = changed.unflatten(0, (groups, -1)).sum(1).transpose(0, 1)
        shape = (len(self.rows), groups, of_groups.shape[-1])
        kept = sums.changes.setdefault(self.number, np.zeros(shape, dtype=np.float32))
        kept[torch.searchsorted(self.rows, block.rows.cpu()).numpy()] = of_groups.cpu().numpy()


def _backward(model: Any, tokens: torch.Tensor, on_forward: Callable[[], None]) -> None:
    """Backward pass of the summed next-token loss, with the logits of some rows at a time.

    ``on_forward`` is called between the forward and the backward pass.
    """
    length = tokens.shape[1]
    with ExitStack() as stack:
        # No parameter needs a gradient, so the graph begins at the embeddings. A family may scale them in place, and
        # torch allows this only on a copy.
        stack.callback(
            model.get_input_embeddings()
            .register_forward_hook(lambda module, arguments, output: output.detach().requires_grad_().clone())
            .remove
        )
        output = base_output(model, input_ids=tokens, use_cache=False)
    on_forward()
    hidden = output["last_hidden_state"]
    cut = hidden.detach().requires_grad_()
    output = with_hidden(output, cut)
    rows = max(1, LOGITS_AT_ONCE // vocabulary(model))
    for start in range(0, length - 1, rows):
        stop = min(start + rows, length - 1)
        logits = head_logits(model, output, tokens, start, stop)
        loss = cross_entropy(logits[0].float(), tokens[0, start + 1 : stop + 1], reduction="sum")
        loss.backward()
    hidden.backward(cut.grad)
