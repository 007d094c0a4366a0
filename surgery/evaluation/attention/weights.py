"""Statistics of attention weights, computed in blocks of rows of the (queries, keys) matrix to bound memory.

For query i with n keys to attend to and weights p: the greatest weight max p, the entropy -sum p ln p in nats, and the
mass on the first tokens. softmax(z) = p is computed again here, in float32, from the very queries and keys that the
model gives to its backend (so after norms, rotary positions and multipliers of the query); the model's output is the
backend's own. Where an operation changes the weights after softmax, they are the weights that it leaves, and the keys
that it rejects are counted too.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from surgery.errors import SurgeryError
from surgery.evaluation.measure import NotMeasurableError
from surgery.loading import operation_modules
from surgery.operations import OPERATIONS
from surgery.operations.measured import ObservedRows

# Elements of a (heads, rows, keys) block: 4 MiB in float32, of which a handful stay in the cache of a core.
ELEMENTS_AT_ONCE = 2**20
STATISTICS = ("greatest", "entropy", "first")


@dataclass(frozen=True)
class StatisticsSettings:
    """``edges``: the last n of each range, rising; ``first_tokens``; ``block``: side of a block of queries and keys."""

    edges: tuple[int, ...]
    first_tokens: int = 4
    block: int = 64


def range_edges(length: int) -> tuple[int, ...]:
    """Last n of each range: two to an octave, up to ``length``."""
    edges = {round(2 ** (step / 2)) for step in range(2 * 40)}
    return (*(edge for edge in sorted(edges) if edge < length), length)


@dataclass
class _Layer:
    """Sums over the rows of one attention module, ``(heads, ranges)``."""

    settings: StatisticsSettings
    sums: dict[str, torch.Tensor] = field(default_factory=dict)
    counts: torch.Tensor | None = None
    rows: int = 0
    rejected: torch.Tensor | None = None
    blocks: torch.Tensor | None = None
    tile: tuple[int, torch.Tensor, torch.Tensor] | None = None

    def add(self, weights: torch.Tensor, entropy: torch.Tensor, visible: torch.Tensor, first_key: int) -> None:
        """One block of rows.

        Args:
            weights: ``(heads, rows, keys)``, zero for keys that may not be attended to.
            entropy: ``(heads, rows)``.
            visible: n of each row.
            first_key: place in the document of the first key.
        """
        edges = torch.tensor(self.settings.edges, device=weights.device)
        which = torch.bucketize(visible, edges)
        first = max(0, self.settings.first_tokens - first_key)
        found = {
            "greatest": weights.amax(-1),
            "entropy": entropy,
            "first": weights[..., :first].sum(-1),
        }
        for name, values in found.items():
            if name not in self.sums:
                self.sums[name] = torch.zeros(weights.shape[0], len(edges), dtype=torch.float64, device=weights.device)
            self.sums[name].index_add_(1, which, values.double())
        if self.counts is None:
            self.counts = torch.zeros(len(edges), dtype=torch.float64, device=weights.device)
        self.counts.index_add_(0, which, torch.ones_like(which, dtype=torch.float64))
        self.rows += len(visible)

    def add_rejected(self, kept: torch.Tensor, allowed: torch.Tensor, start: int) -> None:
        """The keys that an operation rejects in a block of rows.

        Args:
            kept: ``(heads, rows, keys)``, the keys that the operation keeps.
            allowed: ``(rows, keys)``, the keys that may be attended to.
            start: place in the document of the first row.
        """
        heads = kept.shape[0]
        if self.rejected is None:
            self.rejected = torch.zeros(heads + 1, dtype=torch.float64, device=kept.device)
            self.blocks = torch.zeros(heads + 1, dtype=torch.float64, device=kept.device)
        self.rejected[:heads] += (allowed & ~kept).sum((1, 2)).double()
        self.rejected[heads] += allowed.sum().double()
        side = self.settings.block
        row = 0
        while row < len(allowed):
            number = (start + row) // side
            stop = min(len(allowed), (number + 1) * side - start)
            self._tile(number, _by_block(kept[:, row:stop], side), _by_block(allowed[None, row:stop], side)[0])
            row = stop

    def _tile(self, number: int, kept: torch.Tensor, allowed: torch.Tensor) -> None:
        """Join rows of the same block of queries that come in several calls."""
        if self.tile is not None and self.tile[0] == number:
            _, before_kept, before_allowed = self.tile
            wider = allowed.shape[-1] - before_allowed.shape[-1]
            kept = kept | torch.nn.functional.pad(before_kept, (0, wider))
            allowed = allowed | torch.nn.functional.pad(before_allowed, (0, wider))
        else:
            self.close()
        self.tile = (number, kept, allowed)

    def close(self) -> None:
        """Count the blocks of the last rows."""
        if self.tile is not None:
            _, kept, allowed = self.tile
            assert self.blocks is not None
            self.blocks[:-1] += (allowed & ~kept).sum(-1).double()
            self.blocks[-1] += allowed.sum().double()
            self.tile = None


def _by_block(pairs: torch.Tensor, side: int) -> torch.Tensor:
    """``(heads, rows, keys)`` to ``(heads, blocks of keys)``: whether any pair of the block is true."""
    columns = pairs.any(1)
    padded = torch.nn.functional.pad(columns, (0, -columns.shape[-1] % side))
    return padded.view(columns.shape[0], -1, side).any(-1)


class AttentionStatistics:
    """Collects the statistics of every attention module while a model runs one unpadded sequence."""

    def __init__(self, settings: StatisticsSettings) -> None:
        self.settings = settings
        self._layers: dict[int, _Layer] = {}

    def result(self) -> dict[str, Any]:
        """Means by layer, head and range of n, as nested lists.

        ``rejected_*`` are by layer and head; None for a layer where no operation rejects keys.

        Keys: ``layers``, ``ranges`` ([first, last] of n), ``rows`` (queries in each range, by layer),
        ``greatest``, ``entropy``, ``first``, ``rejected_keys``, ``rejected_blocks``.
        """
        if not self._layers:
            raise NotMeasurableError(
                "the attention of this model cannot be observed: it does not look up its backend by name",
                hint="Remove the attention part from the suite.",
            )
        layers = sorted(self._layers)
        for layer in layers:
            self._layers[layer].close()
            if not all(bool(sums.isfinite().all()) for sums in self._layers[layer].sums.values()):
                raise SurgeryError(
                    f"the attention weights of layer {layer} are not finite numbers",
                    hint="Run `surgery verify`, which finds NaN in weights. float16 overflows in some models.",
                )
        # A sliding layer has no n beyond its window; other layers have.
        counts = {layer: self._layers[layer].counts.tolist() for layer in layers}  # type: ignore[union-attr]
        present = [place for place in range(len(self.settings.edges)) if any(own[place] for own in counts.values())]
        starts = (1, *(edge + 1 for edge in self.settings.edges))
        return {
            "layers": layers,
            "ranges": [[starts[place], self.settings.edges[place]] for place in present],
            "rows": [[int(counts[layer][place]) for place in present] for layer in layers],
            **{name: [self._means(layer, name, present) for layer in layers] for name in STATISTICS},
            "rejected_keys": [_shares(self._layers[layer].rejected) for layer in layers],
            "rejected_blocks": [_shares(self._layers[layer].blocks) for layer in layers],
        }

    def _means(self, layer: int, name: str, present: Sequence[int]) -> list[list[float | None]]:
        found = self._layers[layer]
        assert found.counts is not None
        counts = found.counts.tolist()
        return [
            [round(row[place] / counts[place], 7) if counts[place] else None for place in present]
            for row in found.sums[name].tolist()
        ]

    def _layer(self, module: Any) -> _Layer:
        number = getattr(module, "layer_idx", None)
        return self._layers.setdefault(len(self._layers) if number is None else int(number), _Layer(self.settings))

    def attention(
        self, module: Any, query: torch.Tensor, key: torch.Tensor, mask: Any, keywords: dict[str, Any]
    ) -> None:
        """One call of a backend: queries ``(1, heads, rows, head_dim)``, keys ``(1, groups, keys, head_dim)``."""
        layer = self._layer(module)
        heads, rows = query.shape[1:3]
        keys = key.shape[2]
        if mask is not None and (not isinstance(mask, torch.Tensor) or mask.dim() != 4):
            raise SurgeryError(
                f"the attention cannot be observed with a mask of type {type(mask).__name__}",
                hint="Pass --attn-implementation sdpa or eager.",
            )
        if keywords.get("position_bias") is not None:
            raise SurgeryError("the attention of a model with a position bias cannot be observed")
        before = layer.rows
        size = max(1, ELEMENTS_AT_ONCE // (heads * keys))
        for start in range(0, rows, size):
            block = slice(start, min(start + size, rows))
            if mask is None:
                places = torch.arange(block.start, block.stop, device=query.device) + keys - rows
                allowed = torch.arange(keys, device=query.device) <= places[:, None]
            else:
                part = mask[0, 0, block, :keys]
                allowed = part if part.dtype == torch.bool else part > torch.finfo(part.dtype).min / 2
            # Keys that none of these rows may attend to are left out: half of all keys with causal attention.
            used = allowed.any(0).nonzero()
            seen = slice(int(used[0]), int(used[-1]) + 1)
            allowed = allowed[:, seen]
            weights, entropy = _softmax(query[0, :, block], key[0, :, seen], allowed, keywords)
            layer.add(weights, entropy, allowed.sum(-1), before + rows - keys + seen.start)

    def observed(self, module: Any, rows: ObservedRows) -> None:
        """One block of queries of a layer whose weights an operation changes after softmax."""
        layer = self._layer(module)
        before = layer.rows
        first_key = before + rows.weights.shape[1] - int(rows.allowed[-1].nonzero()[-1]) - 1
        layer.add_rejected(rows.kept, rows.allowed, before)
        layer.add(rows.weights, torch.special.entr(rows.weights).sum(-1), rows.allowed.sum(-1), first_key)


def _softmax(
    query: torch.Tensor, key: torch.Tensor, allowed: torch.Tensor, keywords: dict[str, Any]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights ``(heads, rows, keys)`` in float32, zero where not allowed, and their entropy ``(heads, rows)``.

    With p = exp(z - l), the entropy -sum p ln p is l sum p - sum p z: no logarithm of each weight is taken.
    """
    heads, rows, size = query.shape
    scaling = keywords.get("scaling")
    scaling = size**-0.5 if scaling is None else scaling
    grouped = (query.float() * scaling).reshape(key.shape[0], -1, size)
    scores = (grouped @ key.float().transpose(-1, -2)).view(heads, rows, -1)
    softcap = keywords.get("softcap")
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    # Finite, so that a weight of zero times its score is zero.
    scores = scores.masked_fill_(~allowed, torch.finfo(scores.dtype).min / 2)
    normaliser = scores.logsumexp(-1, keepdim=True)
    sink = keywords.get("s_aux")
    if sink is not None:  # a learned score that no key has
        normaliser = torch.logaddexp(normaliser, sink.float().view(heads, 1, 1))
    weights = (scores - normaliser).exp_()
    entropy = normaliser[..., 0] * weights.sum(-1) - scores.mul_(weights).sum(-1)
    return weights, entropy


def _shares(counts: torch.Tensor | None) -> list[float] | None:
    """The count of each head, divided by the last count, which is that of all keys."""
    if counts is None:
        return None
    *own, every = counts.tolist()
    return [round(count / every, 7) for count in own]


@contextmanager
def observed_attention(model: Any, settings: StatisticsSettings) -> Iterator[AttentionStatistics]:
    """Observe every attention module of a model while it runs one unpadded sequence in one or more chunks."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    statistics = AttentionStatistics(settings)
    name = model.config.get_text_config()._attn_implementation
    before = ALL_ATTENTION_FUNCTIONS._local_mapping.get(name)

    observed: set[int] = set()  # attention modules that an operation shows in place of the backend

    def backend(module: Any, query: Any, key: Any, value: Any, attention_mask: Any, **keywords: Any) -> Any:
        if id(module) not in observed:
            statistics.attention(module, query, key, attention_mask, keywords)
        own: Any = before or ALL_ATTENTION_FUNCTIONS._global_mapping.get(name) or _eager(module)
        return own(module, query, key, value, attention_mask, **keywords)

    with ExitStack() as stack:
        for path, operation_module in operation_modules(model).items():
            parent, _, operation = path.rpartition(".")
            attention = model.get_submodule(parent)
            context = OPERATIONS[operation].observed(operation_module, partial(statistics.observed, attention))
            if context is not None:
                observed.add(id(attention))
                stack.enter_context(context)
        ALL_ATTENTION_FUNCTIONS[name] = backend
        try:
            yield statistics
        finally:
            if before is None:
                del ALL_ATTENTION_FUNCTIONS[name]
            else:
                ALL_ATTENTION_FUNCTIONS[name] = before


def _eager(module: Any) -> Callable[..., Any]:
    """The dense attention of the module's family; it is not in the table of backends."""
    for kind in type(module).__mro__:
        found = getattr(sys.modules.get(kind.__module__), "eager_attention_forward", None)
        if found is not None:
            return found
    raise SurgeryError(
        f"the attention of {type(module).__name__} cannot be observed with this backend",
        hint="Pass --attn-implementation sdpa.",
    )
