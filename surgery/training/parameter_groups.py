"""The optimizer's groups of parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from surgery.training.options import AdamW

MakeGroups = Callable[[nn.Module, Any], list[dict[str, Any]]]


def parameter_groups(model: nn.Module, options: AdamW) -> list[dict[str, Any]]:
    """Parameter groups ``weights`` and ``no_decay`` (norms and biases); empty ones are left out."""
    groups: dict[str, dict[str, Any]] = {
        "weights": {"lr": options.lr, "weight_decay": options.weight_decay},
        "no_decay": {"lr": options.lr, "weight_decay": 0.0},
    }
    for parameter in model.parameters():
        if parameter.requires_grad:
            groups["weights" if parameter.dim() > 1 else "no_decay"].setdefault("params", []).append(parameter)
    return [{"name": kind, **group} for kind, group in groups.items() if "params" in group]
