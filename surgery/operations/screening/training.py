"""Screening in a training: the price of accepted keys, the share of rejected ones, and parameters set by a schedule."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from surgery.operations.screening.rejection import counting_rejections
from surgery.operations.screening.sections import Bridge, Softness, Sparsity
from surgery.operations.screening.window_price import SavedByWindows
from surgery.operations.training import StageHooks

# The share of rejected keys in held-out text is counted on no more than this.
SAMPLED_ROWS = 4
SAMPLED_QUERIES = 64
# The sections of a recipe that set a parameter over the steps, and the parameter.
SCHEDULES = {"softness": "softness", "bridge": "renormalisation"}


class ScreeningHooks(StageHooks):
    """Watches the screening modules of a model in one stage.

    Args:
        model: that is trained.
        modules: its screening modules by layer; their counters are replaced.
        sections: of the recipe: ``sparsity``, ``softness``, ``bridge``.
        layers: that the stage trains.
    """

    def __init__(
        self, model: nn.Module, modules: Mapping[int, Any], sections: Mapping[str, Any], layers: Collection[int]
    ) -> None:
        self._model, self._share = model, RejectedShare(modules)
        self._sparsity: Sparsity | None = sections.get("sparsity")
        self._windows: SavedByWindows | None = None
        if self._sparsity is not None and self._sparsity.context is not None:
            self._windows = SavedByWindows(model, self._sparsity.save, self._sparsity.context)
            self._share.saved_by = self._windows.share
        self._schedules: dict[str, Softness | Bridge] = {key: sections[key] for key in SCHEDULES if key in sections}
        self._scheduled = [module for layer, module in modules.items() if layer in layers]
        self.term = None if self._sparsity is None else "sparsity"
        self.loss_may_rise = "bridge" in sections  # towards the unit the loss rises as softmax goes

    def begin_pass(self) -> None:
        """Count anew."""
        self._share.clear()

    def extra_loss(self) -> torch.Tensor | None:
        """The price of what should have been saved, in nats per token."""
        share = self._share.mean() if self._windows is None else self._share.saved()
        return None if share is None or self._sparsity is None else penalty(self._sparsity, share)

    def pass_numbers(self) -> Mapping[str, torch.Tensor]:
        """The share of rejected keys, and that of the cache or time that windows save, where they have a price."""
        found = {"rejected": self._share.mean(), "saved": self._share.saved()}
        return {name: share for name, share in found.items() if share is not None}

    @torch.no_grad()
    def set_parameters(self, step: int, steps: int) -> Mapping[str, float]:
        """Give every head of the trained layers the values of the schedules; the values by section."""
        values = {section: value_at(options, step, steps) for section, options in self._schedules.items()}
        for module in self._scheduled:
            for section, value in values.items():
                getattr(module, SCHEDULES[section]).fill_(value)
        return values

    def held_out_numbers(self, passes: Sequence[Any]) -> Mapping[str, float]:
        """The share of rejected keys in a sample: some of the rows, and some queries of each."""
        shares = []
        for own in passes[:: max(1, len(passes) // SAMPLED_ROWS)][:SAMPLED_ROWS]:
            queries = torch.arange(0, own.tokens, max(1, own.tokens // SAMPLED_QUERIES))
            with counting_rejections(self._model, queries) as counts:
                own.run()
            if counts.shares():
                shares.append(counts.total())
        return {"rejected": sum(shares) / len(shares)} if shares else {}


class RejectedShare:
    """The share of keys that screening rejects in the passes that train it.

    The count of every layer that learns has a gradient for its thresholds and windows, as the travelling code
    documents at ``Screening.count_rejected``.
    """

    def __init__(self, modules: Mapping[int, Any]) -> None:
        """Count in these modules, in place of an earlier counter."""
        self._rejected: dict[int, torch.Tensor] = {}
        self._keys: dict[int, int] = {}
        self._saved: dict[int, torch.Tensor] = {}
        self.saved_by: Callable[[Any], torch.Tensor] | None = None  # of a module; looked at where it runs
        for layer, module in modules.items():
            module.counter = self._counter(layer, module)

    def _counter(self, layer: int, module: Any) -> Any:
        def count(rejected: torch.Tensor, keys: int) -> None:
            if self.saved_by is not None:
                self._saved[layer] = self.saved_by(module)
            self._rejected[layer] = self._rejected.get(layer, 0) + rejected
            self._keys[layer] = self._keys.get(layer, 0) + keys

        return count

    def clear(self) -> None:
        """Forget all counts; with recomputed activations the backward pass counts again."""
        self._rejected, self._keys, self._saved = {}, {}, {}

    def saved(self) -> torch.Tensor | None:
        """What windows save, the mean over the layers that learn; None where nothing is asked or learned."""
        return torch.stack(list(self._saved.values())).mean() if self._saved else None

    def mean(self) -> torch.Tensor | None:
        """Rejected keys over all keys, the mean over heads and layers, with gradient; None where nothing learned."""
        if not self._rejected:
            return None
        shares = [rejected.mean() / max(1, self._keys[layer]) for layer, rejected in self._rejected.items()]
        return torch.stack(shares).mean()


def penalty(options: Sparsity, share: torch.Tensor) -> torch.Tensor:
    """The extra loss per token: the price of what should have been saved and was not."""
    missing = (1.0 if options.target is None else options.target) - share
    return options.weight * missing.clamp(min=0)


def value_at(options: Softness | Bridge, step: int, steps: int) -> float:
    """The value at a step (from 0) of a stage: ``start`` at the first, ``end`` at the last and after it."""
    part = min(1.0, step / (steps - 1)) if steps > 1 else 1.0
    if isinstance(options, Softness) and options.schedule == "geometric":
        return math.exp((1 - part) * math.log(options.start) + part * math.log(options.end))
    return (1 - part) * options.start + part * options.end
