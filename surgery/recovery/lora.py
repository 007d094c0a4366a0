"""Low-rank changes (LoRA, by PEFT) of the attention's linear layers, beside the parameters of operations."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, cast

from surgery.errors import PlanRefusedError, UsageError
from surgery.recovery.layout import Layout, Variant
from surgery.recovery.parameters import choose_trained, operation_parameters, trained_names
from surgery.recovery.recipe import Recipe
from surgery.recovery.train_choice import TrainLora
from surgery.words import nearest

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel


def lora_targets(train: TrainLora, layout: Layout, linear: Iterable[str], chosen: Iterable[int]) -> list[str]:
    """Full names of the linear modules that get a low-rank change.

    Args:
        train: its ``targets``.
        layout: of the model.
        linear: full names of all linear modules.
        chosen: layers.

    Raises:
        UsageError: a target is no linear layer of the attention; the error has the nearest name.
    """
    layers = set(chosen)
    found: dict[str, str] = {}
    for name in linear:
        inside = layout.inside_attention(name)
        if inside is not None and inside[0] in layers:
            found[name] = inside[1]
    kinds = list(dict.fromkeys(found.values()))
    if train.targets == "auto":
        if not found:
            raise PlanRefusedError("the attention of the chosen layers has no linear layer")
        return list(found)
    unknown = [target for target in train.targets if target not in kinds]
    if unknown:
        close = nearest(unknown[0], kinds)
        raise UsageError(
            f"train.targets: the attention has no linear layer {unknown[0]!r}"
            + (f"; did you mean {close!r}?" if close else ""),
            hint=f"Choose from {', '.join(kinds)}.",
        )
    return [name for name, kind in found.items() if kind in train.targets]


def linear_names(model: nn.Module) -> list[str]:
    """Full names of a model's linear modules."""
    from torch import nn

    return [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]


def prepare_model(
    model: PreTrainedModel,
    recipe: Recipe,
    layout: Layout,
    variant: Variant = "operated",
    stages: Sequence[Recipe] | None = None,
) -> nn.Module:
    """Add LoRA if any stage trains it, and select the parameters of the first stage.

    The parameters of operations are float32 then, whatever the dtype of the model.

    Args:
        model: freshly loaded, with its control applied.
        recipe: gives the seed of LoRA.
        layout: of the model.
        variant: the control, or ``operated``.
        stages: recipes of the stages; by default the recipe is the only stage.

    Returns:
        The model to train (a PEFT model with LoRA).
    """
    import torch

    stages = list(stages or [recipe])
    adapted = [stage for stage in stages if isinstance(stage.train, TrainLora)]
    prepared: nn.Module = model
    if adapted:
        from peft import LoraConfig, get_peft_model

        train = adapted[0].train
        assert isinstance(train, TrainLora)
        own = [name for name, _ in model.named_parameters()]
        names = {name for stage in stages for name in trained_names(stage, layout, own, variant)}
        modules = sorted({name.rpartition(".")[0] for name in names})
        config = LoraConfig(
            r=train.rank,
            lora_alpha=cast(int, train.alpha),
            lora_dropout=train.dropout,
            use_rslora=train.rslora,
            use_dora=train.dora,
            target_modules=lora_targets(train, layout, linear_names(model), layout.chosen(adapted[0])),
            modules_to_save=modules or None,
            task_type="CAUSAL_LM",
        )
        torch.manual_seed(recipe.seed)
        with quiet_peft():
            prepared = get_peft_model(model, config)
    choose_trained(prepared, stages[0], layout, variant)
    for name, parameter in operation_parameters(prepared).items():
        if parameter.dtype != torch.float32:
            raise RuntimeError(f"{name} is {parameter.dtype}, not float32, so rounding would lose optimizer steps")
    return prepared


@contextmanager
def quiet_peft() -> Iterator[None]:
    """Silence a known warning, within a ``with`` block: PEFT reads an attribute of transformers by its old name."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
        yield
