"""The model made ready to train: its parameters frozen or not, LoRA put on, optimizer groups."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, cast

from rapidfuzz import process

from surgery.anatomy.reading import count_layers, family_of
from surgery.errors import PlanRefusedError, UsageError
from surgery.recovery.recipe import Optimizer, Recipe, TrainLora

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedModel

# Operations whose parameters are learned, as they are named on the attention module.
OPERATION_NAMES = ("ssmax", "screening")
_OPERATION = re.compile(rf"(?:^|\.)(?:{'|'.join(OPERATION_NAMES)})\.")
_SOFTNESS = re.compile(r"\.screening\.(?:.+\.)?softness$")
_EXPONENT = re.compile(r"\.screening\.(?:.+\.)?renormalisation$")
_LORA = re.compile(r"\.lora_")
_ORIGINAL = ".original_module."
Variant = Literal["operated", "untouched", "temperature"]


def is_operation(name: str) -> bool:
    """Whether a tensor or parameter belongs to an operation rather than to the original model."""
    return _OPERATION.search(name) is not None


class Layout:
    """Which layer a tensor belongs to, from the ``surgery`` block of config.json."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        """Read the block.

        Raises:
            PlanRefusedError: the model was not converted, or its family is not known.
            CheckpointError: config.json does not say how many layers there are.
        """
        block = config.get("surgery")
        if not isinstance(block, Mapping) or not block.get("operations"):
            raise PlanRefusedError(
                "The model was not converted: its config.json has no operations.",
                hint="Convert it first: surgery convert --to ssmax MODEL. Or name operations in the recipe.",
            )
        self.attention = str(block.get("attention", "layers.{layer}.self_attn"))
        self.operations: list[Mapping[str, Any]] = list(block["operations"])
        self.family = family_of(config)
        # A model of several parts is called otherwise on disk, and its other parts have layers too.
        paths = [self.attention, *(self.family.module_paths if self.family.text is not None else ())]
        before = "|".join(re.escape(path.partition("{layer}")[0]) for path in paths)
        after = re.escape(self.attention.partition("{layer}")[2])
        self._layer = re.compile(rf"(?:^|\.)(?:{before})(\d+)\.")
        self._attention = re.compile(rf"(?:^|\.)(?:{before})(\d+){after}\.(.+)")
        self.count = count_layers(config, self.family)

    @staticmethod
    def described(options: Mapping[str, Any]) -> list[str]:
        """Name and kind of an operation."""
        return [str(options[key]) for key in ("name", "form", "type") if options.get(key) is not None]

    @property
    def rope(self) -> Mapping[str, Any] | None:
        """The options of a RoPE change, None where there was none."""
        return next((options for options in self.operations if options.get("name") == "rope"), None)

    def layer(self, name: str) -> int | None:
        """The layer of a tensor, None outside the layers."""
        match = self._layer.search(name)
        return int(match[1]) if match else None

    def inside_attention(self, name: str) -> tuple[int, str] | None:
        """The layer and the name within its attention module, None outside."""
        match = self._attention.search(name)
        return (int(match[1]), match[2]) if match else None

    def chosen(self, recipe: Recipe) -> list[int]:
        """The layers to train.

        Raises:
            UsageError: the model has not all of them.
        """
        chosen = recipe.train.chosen_layers(self.count)
        beyond = [layer for layer in chosen if layer >= self.count]
        if beyond:
            raise UsageError(
                f"train.layers names layer {beyond[-1]}; the model has {self.count}, 0 to {self.count - 1}."
            )
        return chosen


def trained_names(recipe: Recipe, layout: Layout, names: Iterable[str], variant: Variant = "operated") -> list[str]:
    """Which of the model's own tensors are trained (LoRA's come on top).

    Raises:
        PlanRefusedError: ``train.what: scale`` and there are no such parameters on the chosen layers.
    """
    chosen = set(layout.chosen(recipe))
    names = list(names)
    scales = [name for name in names if is_operation(name) and layout.layer(name) in chosen]
    if variant == "untouched":
        scales = []
    elif recipe.train.what == "scale" and not scales:
        done = sorted({" ".join(map(str, layout.described(options))) for options in layout.operations})
        if any(is_operation(name) for name in names):
            raise PlanRefusedError(
                f"There is nothing to train: no layer among train.layers {recipe.train.layers!r} has parameters of "
                "the operation.",
                hint="`surgery inspect` shows the layers that have them.",
            )
        raise PlanRefusedError(
            f"There is nothing to train: {' and '.join(done)} added no parameters.",
            hint="Set train.what to scale+lora or full, or convert with --to ssmax --form anchored.",
        )
    if recipe.train.what != "full":
        return scales
    return [
        name
        for name in names
        if (recipe.train.layers == "all" or layout.layer(name) in chosen)
        and (variant != "untouched" or not is_operation(name))
    ]


def lora_targets(train: TrainLora, layout: Layout, linear: Iterable[str], chosen: Iterable[int]) -> list[str]:
    """Full names of the linear modules that get a low-rank change.

    Args:
        train: its ``targets``.
        layout: of the model.
        linear: full names of all linear modules.
        chosen: layers.

    Raises:
        UsageError: a target is no linear layer of the attention; the nearest names are given.
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
            raise PlanRefusedError("No linear layer was found in the attention of the chosen layers.")
        return list(found)
    unknown = [target for target in train.targets if target not in kinds]
    if unknown:
        close = process.extractOne(unknown[0], kinds, score_cutoff=50)
        raise UsageError(
            f"train.targets: the attention has no linear layer {unknown[0]!r}"
            + (f"; did you mean {close[0]!r}?" if close else "."),
            hint=f"It has {', '.join(kinds)}.",
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
    """Put LoRA on where any stage trains it, and choose what the first stage trains.

    The operation's parameters are float32 afterwards, whatever the model's dtype.

    Args:
        model: freshly loaded, already made its variant.
        recipe: its seed is LoRA's.
        layout: of the model.
        variant: which of the run's models it is.
        stages: what each stage trains; by default the recipe is the only stage.

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
            raise RuntimeError(f"{name} is {parameter.dtype}, not float32: an optimizer step could not move it")
    return prepared


@contextmanager
def quiet_peft() -> Iterator[None]:
    """Without its one known warning: PEFT asks transformers for an attribute by its old name."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
        yield


def choose_trained(model: nn.Module, stage: Recipe, layout: Layout, variant: Variant = "operated") -> list[str]:
    """Freeze what a stage does not train; returns the names of what it trains, which may be none.

    A softness that goes by a schedule is among them, and so is the exponent of units; they have no gradient.
    """
    names = [name for name, _ in model.named_parameters()]
    # PEFT keeps the module that it trains a copy of.
    own = set(trained_names(stage, layout, (name for name in names if _ORIGINAL not in name), variant))
    chosen = set(layout.chosen(stage))
    lora = {name for name in names if _LORA.search(name)}
    if isinstance(stage.train, TrainLora):
        own |= {name for name in lora if layout.layer(name) in chosen}
    elif stage.train.what == "full":
        own -= lora
    for name, parameter in model.named_parameters():
        scheduled = stage.softness is not None and _SOFTNESS.search(name) is not None
        scheduled = scheduled or _EXPONENT.search(name) is not None
        parameter.requires_grad_(name in own and not scheduled)
    return [name for name in names if name in own]


def put(model: nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    """Copy whole tensors into the parameters of their names, sharded or not."""
    import torch

    from surgery.recovery.sharding import like

    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, tensor in tensors.items():
            parameters[name].copy_(like(tensor, parameters[name]))


def operation_parameters(model: nn.Module) -> dict[str, torch.nn.Parameter]:
    """The operation's parameters that are trained, by name."""
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and is_operation(name)
    }


def optimizer_groups(model: nn.Module, options: Optimizer) -> list[dict[str, Any]]:
    """Parameter groups ``scale``, ``weights`` and ``no_decay``; empty ones are left out.

    The operation's parameters have their own learning rate and no weight decay: decay would pull s towards 0, which is
    a particular attention and not a simpler one.
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
