"""Names of a package that are imported on first use, so that a wrong argument is told before torch is imported."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def later(name: str) -> Callable[..., Any]:
    """A class or a function that is imported when it is first called.

    Args:
        name: with its module: ``package.module.Class``.
    """
    module, _, own = name.rpartition(".")

    def call(*arguments: Any, **keywords: Any) -> Any:
        return getattr(import_module(module), own)(*arguments, **keywords)

    return call


def lazy_names(package: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """The ``__getattr__`` of a package.

    Args:
        package: its name.
        homes: for each name the file of the package that has it.
    """

    def get(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(f"{package}.{homes[name]}"), name)

    return get
