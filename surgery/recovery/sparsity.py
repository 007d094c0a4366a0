"""What a recipe asks of screening beside its objective: a share of rejected keys, and numbers that go by a schedule."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from surgery.loading import operation_modules
from surgery.recovery.preparing import Layout
from surgery.recovery.recipe import Bridge, Recipe, Softness, Sparsity


def screened_layers(model: nn.Module, layout: Layout) -> dict[int, Any]:
    """The screening modules of a model by layer; PEFT's wrappers where it has put any."""
    named = {name: module for name, module in operation_modules(model).items() if name.endswith(".screening")}
    return {number: module for name, module in named.items() if (number := layout.layer(f"{name}.")) is not None}


class RejectedShare:
    """Counts what screening rejects in the passes that train it.

    The count of every layer that learns comes with a gradient for its thresholds and windows, as the travelling code
    says in ``Screening.count_rejected``.
    """

    def __init__(self, model: nn.Module, layout: Layout) -> None:
        """Watch a model, in place of whoever watched it."""
        self._rejected: dict[int, torch.Tensor] = {}
        self._keys: dict[int, int] = {}
        for layer, screening in screened_layers(model, layout).items():
            screening.counter = self._counter(layer)

    def _counter(self, layer: int) -> Any:
        def count(rejected: torch.Tensor, keys: int) -> None:
            self._rejected[layer] = self._rejected.get(layer, 0) + rejected
            self._keys[layer] = self._keys.get(layer, 0) + keys

        return count

    def clear(self) -> None:
        """Forget; with recomputed activations the way back counts again."""
        self._rejected, self._keys = {}, {}

    def share(self) -> torch.Tensor | None:
        """Rejected keys over all keys, the mean over heads and layers, with gradient; None where nothing learned."""
        if not self._rejected:
            return None
        shares = [rejected.mean() / max(1, self._keys[layer]) for layer, rejected in self._rejected.items()]
        return torch.stack(shares).mean()


def penalty(options: Sparsity, share: torch.Tensor) -> torch.Tensor:
    """What is added to the loss per token: the price of the keys that should have been rejected and were not."""
    missing = (1.0 if options.target is None else options.target) - share
    return options.weight * missing.clamp(min=0)


# The sections of a recipe that set a parameter of screening over the steps, and the parameter.
SCHEDULES = {"softness": "softness", "bridge": "renormalisation"}


def value_at(options: Softness | Bridge, step: int, steps: int) -> float:
    """The value at a step (from 0) of a stage: ``start`` at the first, ``end`` at the last and after it."""
    part = min(1.0, step / (steps - 1)) if steps > 1 else 1.0
    if isinstance(options, Softness) and options.schedule == "geometric":
        return math.exp((1 - part) * math.log(options.start) + part * math.log(options.end))
    return (1 - part) * options.start + part * options.end


@torch.no_grad()
def set_scheduled(model: nn.Module, layout: Layout, stage: Recipe, step: int, steps: int) -> dict[str, float]:
    """Give every head of the trained layers what the stage's schedules say for a step; the values by section."""
    values = {
        section: value_at(options, step, steps)
        for section in SCHEDULES
        if (options := getattr(stage, section)) is not None
    }
    chosen = set(layout.chosen(stage)) if values else set()
    for layer, screening in screened_layers(model, layout).items() if values else ():
        if layer in chosen:
            for section, value in values.items():
                getattr(screening, SCHEDULES[section]).fill_(value)
    return values
