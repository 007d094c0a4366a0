"""The operations of a loaded model: find their modules, and switch them off to get the source model."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from surgery.operations import OPERATIONS

if TYPE_CHECKING:
    import torch


def operation_modules(model: torch.nn.Module) -> dict[str, torch.nn.Module]:
    """The operations' own modules of a model, by path (``model.layers.0.self_attn.NAME``)."""
    return {path: module for path, module in model.named_modules() if operation_of(path) in OPERATIONS}


def operation_of(path: str) -> str:
    """The name of the operation whose module lies at a path."""
    return path.rpartition(".")[2]


@contextmanager
def operations_off(model: torch.nn.Module, *, keep: Collection[str] = ()) -> Iterator[None]:
    """Switch the operations off within a ``with`` block: the source model, on the same weights.

    Args:
        model: with operations, or without.
        keep: names of operations that stay on.
    """
    modules: list[Any] = [one for path, one in operation_modules(model).items() if operation_of(path) not in keep]
    enabled_before = [module.enabled for module in modules]
    replaced = _source_modules(model, keep)
    for module in modules:
        module.enabled = False
    for parent, attribute, _, source in replaced:
        setattr(parent, attribute, source)
    try:
        yield
    finally:
        for module, enabled in zip(modules, enabled_before, strict=True):
            module.enabled = enabled
        for parent, attribute, converted, _ in replaced:
            setattr(parent, attribute, converted)


def switch_off(model: torch.nn.Module, *, keep: Collection[str] = ()) -> None:
    """Switch the operations off permanently, except those named in ``keep``."""
    modules: list[Any] = [one for path, one in operation_modules(model).items() if operation_of(path) not in keep]
    for module in modules:
        module.enabled = False
    for parent, attribute, _, source in _source_modules(model, keep):
        setattr(parent, attribute, source)


def _source_modules(model: torch.nn.Module, keep: Collection[str]) -> list[tuple[Any, str, Any, Any]]:
    """(parent, attribute, converted module, source module) for each module that an operation replaced."""
    found = []
    for name, operation in OPERATIONS.items():
        if name in keep:
            continue
        for path, source in operation.source_modules(model).items():
            parent, _, attribute = path.rpartition(".")
            found.append((model.get_submodule(parent), attribute, model.get_submodule(path), source))
    return found
