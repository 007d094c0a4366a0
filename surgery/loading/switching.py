"""Find a model's operations, and switch them off: the model as it was, with the same weights and no second copy."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

_ROTARY = "rotary_emb"


def operation_modules(model: torch.nn.Module) -> dict[str, torch.nn.Module]:
    """The operations' own modules of a model, by name (``model.layers.0.self_attn.ssmax``)."""
    from surgery.operations import OPERATIONS

    return {name: module for name, module in model.named_modules() if name.rpartition(".")[2] in OPERATIONS}


def rotary_modules(model: torch.nn.Module) -> dict[str, torch.nn.Module]:
    """The modules that hold the frequencies of RoPE, by name (``model.rotary_emb``)."""
    return {name: module for name, module in model.named_modules() if name.rpartition(".")[2] == _ROTARY}


@contextmanager
def operations_off(model: torch.nn.Module, *, rope: bool = True) -> Iterator[None]:
    """The model as it was before the operations, whichever way its code was loaded.

    Args:
        model: on which operations were performed, or not.
        rope: whether RoPE is put back too, where it was changed.
    """
    modules: list[Any] = list(operation_modules(model).values())
    before = [module.enabled for module in modules]
    changed = _source_ropes(model) if rope else []
    for module in modules:
        module.enabled = False
    for parent, _, old in changed:
        setattr(parent, _ROTARY, old)
    try:
        yield
    finally:
        for module, enabled in zip(modules, before, strict=True):
            module.enabled = enabled
        for parent, new, _ in changed:
            setattr(parent, _ROTARY, new)


def switch_off(model: torch.nn.Module) -> None:
    """As :func:`operations_off`, for good."""
    for module in operation_modules(model).values():
        module.enabled = False  # type: ignore[assignment]
    for parent, _, old in _source_ropes(model):
        setattr(parent, _ROTARY, old)


def changed_rope(config: Any) -> dict[str, Any] | None:
    """The options of the ``rope`` operation in a model's config, None where there was none."""
    block = getattr(config, "surgery", None) or {}
    return next((options for options in block.get("operations", ()) if options["name"] == "rope"), None)


def _source_ropes(model: torch.nn.Module) -> list[tuple[torch.nn.Module, torch.nn.Module, torch.nn.Module]]:
    """(parent, module with the changed RoPE, the same with the source's) for each place where RoPE was changed."""
    found: list[tuple[torch.nn.Module, torch.nn.Module, torch.nn.Module]] = []
    for name, module in rotary_modules(model).items():
        config: Any = getattr(module, "config", None)
        options = changed_rope(config)
        if options is None:
            continue
        original = copy.deepcopy(config)
        original.max_position_embeddings = options["before"]["max_position_embeddings"]
        original.rope_parameters = copy.deepcopy(options["before"]["rope_parameters"])
        device = next(buffer.device for buffer in module.buffers())
        old = type(module)(original).to(device)
        found.append((model.get_submodule(name.rpartition(".")[0]), module, old.train(module.training)))
    return found
