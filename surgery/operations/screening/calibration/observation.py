"""One forward and backward pass over a passage: the effect of each head's keys on the loss, for a sample of queries."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from surgery.loading.head import LOGITS_AT_ONCE, base_output, head_logits, vocabulary, with_hidden
from surgery.loading.model import recompute
from surgery.operations.screening.calibration.grid import Grid, PassageSums, sum_over_keys

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
        for number, (attention, screening) in enumerate(layers.values()):
            _Watcher(sums, number, grid, screening, rows).attach(attention, stack)
        if again:
            recompute(model, True)
            model.train()
            stack.callback(model.eval)
            stack.callback(recompute, model, False)
        _backward(model, tokens)
    sums.queries = len(rows)
    return sums


class _Watcher:
    """Keeps the attention weights of one layer until the gradient arrives, then adds them to the sums."""

    def __init__(self, sums: PassageSums, number: int, grid: Grid, screening: Any, rows: torch.Tensor) -> None:
        self.sums, self.number, self.grid, self.screening, self.rows = sums, number, grid, screening, rows
        self.seen: list[Any] = []
        self.output: torch.Tensor | None = None

    def attach(self, attention: Any, stack: ExitStack) -> None:
        """Observe the layer until the stack is closed."""
        self.screening.observer, self.screening.observed_rows = self._show, self.rows

        def detach() -> None:
            self.screening.observer = self.screening.observed_rows = None

        stack.callback(detach)
        # The projection of the heads' outputs runs last, and families give it several names.
        for child in attention.children():
            if getattr(child, "weight", None) is not None and child.weight.dim() == 2:
                stack.callback(child.register_forward_pre_hook(self._input).remove)
        stack.callback(attention.register_forward_pre_hook(self._begin).remove)
        stack.callback(attention.register_forward_hook(self._end).remove)

    def _begin(self, module: Any, arguments: Any) -> None:
        self.seen, self.output = [], None

    def _show(self, observation: Any) -> None:
        self.seen.append(observation)

    def _input(self, module: Any, arguments: Any) -> None:
        self.output = arguments[0]

    def _end(self, module: Any, arguments: Any, result: Any) -> None:
        if self.output is not None and self.output.requires_grad:
            seen = self.seen
            self.output.register_hook(lambda gradient: self._arrived(gradient, seen))
        self.seen, self.output = [], None

    @torch.no_grad()
    def _arrived(self, gradient: torch.Tensor, seen: list[Any]) -> None:
        heads = self.screening.num_heads
        gradient = gradient.reshape(gradient.shape[0], gradient.shape[1], heads, -1)
        sums = self.sums
        for block in seen:
            free = block.allowed & ~block.sinks
            groups = heads // block.value.shape[1]
            if self.number == 0:
                sums.keys += float(block.allowed.sum())
            for head in range(heads):
                pull = gradient[0, block.rows, head].float() @ block.value[0, head // groups].float().T
                found = sum_over_keys(
                    self.grid,
                    block.weights[0, head].float() * block.allowed[0, 0],
                    block.relevance[0, head],
                    block.distance[0, 0],
                    free[0, 0],
                    pull,
                )
                for total, values in zip((sums.rejected, sums.mass, sums.squared_change), found, strict=True):
                    total[self.number, head] += values.cpu().numpy()


def _backward(model: Any, tokens: torch.Tensor) -> None:
    """Backward pass of the summed next-token loss, with the logits of some rows at a time."""
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
