"""The price of windows in a training: the share of the cache, or of the time of attention, that they save."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from surgery.errors import SurgeryError
from surgery.operations.screening.savings import kept_keys

# The slope of what a window saves is taken over this part of an octave, half below and half above.
STEP = 0.5


class SavedByWindows:
    """What the windows of a screening module save at a context.

    Args:
        model: that has the modules.
        save: memory or time.
        context: in tokens.
    """

    def __init__(self, model: nn.Module, save: str, context: int) -> None:
        self._saved = _saved_by(save, context)
        self.longest = 0  # tokens of the longest sequence so far
        self._each = {
            id(module.screening): getattr(module, "num_key_value_groups", None)
            for module in model.modules()
            if hasattr(module, "screening")
        }
        model.register_forward_pre_hook(self._see, with_kwargs=True)

    def _see(self, model: nn.Module, positional: tuple[Any, ...], given: dict[str, Any]) -> None:
        tokens = given.get("input_ids", given.get("inputs_embeds", positional[0] if positional else None))
        if tokens is not None:
            self.longest = max(self.longest, int(tokens.shape[1]))

    def share(self, module: Any) -> torch.Tensor:
        """The mean over the key-value heads of a module, with a gradient for the windows that decide: the widest ones.

        A window longer than half of the longest sequence has none: the texts do not show what it loses.

        Raises:
            SurgeryError: the family does not say how many query heads share a key-value head.
        """
        each = self._each[id(module)]
        if each is None:
            raise SurgeryError(
                "sparsity by memory or time needs to know how many query heads share a key-value head, and the "
                "attention of this family does not say so",
                hint="Set sparsity.save to keys.",
            )
        log2_window = module.of_all_heads()[2].flatten()
        widest = log2_window.view(-1, each).amax(1)
        exact, slopes = [], []
        for value in widest.tolist():
            window = round(2**value)
            exact.append(0.0 if window >= module.full_window else self._saved(window, module.sinks))
            learns = 2 * window <= self.longest
            ends = [round(2 ** (value + half)) for half in (-STEP / 2, STEP / 2)]
            below, above = (self._saved(end, module.sinks) for end in ends)
            slopes.append((above - below) / STEP if learns else 0.0)
        saved, slope = (torch.tensor(values, device=widest.device) for values in (exact, slopes))
        return (saved + slope * (widest - widest.detach())).mean()


def _saved_by(save: str, context: int) -> Callable[[float, int], float]:
    """The share that a key-value head saves, by its window and the number of first keys."""
    if save == "memory":
        return lambda window, sinks: 1 - kept_keys(window, context, sinks) / context
    from surgery.operations.screening.cost import read_costs

    costs = read_costs()
    return lambda window, sinks: 1 - costs.share(math.inf if window >= context else window, context, sinks)
