"""SSMax in a training: the penalty on multipliers that leave 1."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from surgery.operations.ssmax.sections import Identity
from surgery.operations.training import StageHooks


class IdentityHooks(StageHooks):
    """Adds the penalty of the modules that a stage trains; a control's constants pay it in the same way."""

    term = "identity"

    def __init__(self, modules: Mapping[int, Any], options: Identity) -> None:
        self._modules, self._options = list(modules.values()), options

    def extra_loss(self) -> torch.Tensor | None:
        """The weight times the mean over layers, heads and lengths of (m(n) - 1)²; nats per predicted token.

        A gain of the output counts as one more length.
        """
        squares = []
        for module in self._modules:
            device = next(module.parameters()).device
            multipliers = module(torch.tensor([self._options.lengths], dtype=torch.float32, device=device))
            factors = multipliers.flatten()
            if module.scales_output:
                factors = torch.cat((factors, module.gain.float()))
            squares.append((factors - 1).square().mean().to(self._modules_device()))
        return self._options.weight * torch.stack(squares).mean()

    def _modules_device(self) -> torch.device:
        """Layers may lie on several devices."""
        found: torch.device = next(self._modules[0].parameters()).device
        return found
