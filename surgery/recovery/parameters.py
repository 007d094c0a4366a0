"""The parameters that a stage trains, and their optimizer groups."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from surgery.errors import PlanRefusedError
from surgery.operations.parameters import is_operation, names_with_parameters, owner
from surgery.recovery.layout import Layout, Variant
from surgery.recovery.operation_sections import given_sections
from surgery.recovery.recipe import Optimizer, Recipe
from surgery.recovery.train_choice import TrainLora

if TYPE_CHECKING:
    import torch
    from torch import nn

_LORA = re.compile(r"\.lora_")
_ORIGINAL = ".original_module."


def trained_names(recipe: Recipe, layout: Layout, names: Iterable[str], variant: Variant = "operated") -> list[str]:
    """The trained tensors of the model itself, without those of LoRA.

    Raises:
        PlanRefusedError: ``train.what`` is scale, and the chosen layers have no parameters of operations.
    """
    chosen = set(layout.chosen(recipe))
    names = list(names)
    scales = [name for name in names if is_operation(name) and layout.layer(name) in chosen]
    if variant == "untouched" or recipe.train.what == "lora":
        scales = []
    elif recipe.train.what == "scale" and not scales:
        if any(is_operation(name) for name in names):
            raise PlanRefusedError(
                f"nothing to train: no layer among train.layers {recipe.train.layers!r} has parameters of the "
                "operation",
                hint="`surgery inspect` shows the layers with such parameters.",
            )
        raise PlanRefusedError(
            f"nothing to train: {layout.done()} added no parameters",
            hint="Set train.what to scale+lora or full, or convert with an operation that has learned parameters: "
            f"{' or '.join(names_with_parameters())}.",
        )
    if not recipe.train.changes_weights:
        return scales
    return [
        name
        for name in names
        if (recipe.train.layers == "all" or layout.layer(name) in chosen)
        and (variant != "untouched" or not is_operation(name))
    ]


def choose_trained(model: nn.Module, stage: Recipe, layout: Layout, variant: Variant = "operated") -> list[str]:
    """Freeze the parameters that a stage does not train; returns the names of the others, which may be none.

    The names include parameters that a schedule sets, which have no gradient.
    """
    names = [name for name, _ in model.named_parameters()]
    # PEFT trains a copy of a module, and keeps the original.
    own = set(trained_names(stage, layout, (name for name in names if _ORIGINAL not in name), variant))
    chosen = set(layout.chosen(stage))
    lora = {name for name in names if _LORA.search(name)}
    if isinstance(stage.train, TrainLora):
        own |= {name for name in lora if layout.layer(name) in chosen}
    elif stage.train.changes_weights:
        own -= lora
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in own and not _is_unlearned(name, stage))
    return [name for name in names if name in own]


def _is_unlearned(name: str, stage: Recipe) -> bool:
    operation = owner(name)
    if operation is None:
        return False
    return name.rpartition(".")[2] in operation.unlearned(given_sections(stage, operation.name))


def operation_parameters(model: nn.Module) -> dict[str, torch.nn.Parameter]:
    """The trained parameters of operations, by name."""
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and is_operation(name)
    }


def optimizer_groups(model: nn.Module, options: Optimizer) -> list[dict[str, Any]]:
    """Parameter groups ``scale``, ``weights`` and ``no_decay``; empty ones are left out.

    The parameters of operations have their own learning rate and no weight decay: decay would pull them towards
    0, which is no simpler attention than any other value.
    """
    groups: dict[str, dict[str, Any]] = {
        "scale": {"lr": options.scale_lr, "weight_decay": 0.0},
        "weights": {"lr": options.lr, "weight_decay": options.weight_decay},
        "no_decay": {"lr": options.lr, "weight_decay": 0.0},
    }
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        # Norms and biases are vectors; so is DoRA's magnitude.
        kind = "scale" if is_operation(name) else "weights" if parameter.dim() > 1 else "no_decay"
        groups[kind].setdefault("params", []).append(parameter)
    return [{"name": kind, **group} for kind, group in groups.items() if "params" in group]
