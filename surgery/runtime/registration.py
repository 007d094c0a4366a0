"""Make the auto classes of transformers know the operated model types, without importing transformers too early.

``import surgery`` must stay light, and transformers takes seconds. So the types are registered when transformers is
imported, whichever of the two comes first.
"""

from __future__ import annotations

import importlib.machinery
import sys
from collections.abc import Iterable, Sequence
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from importlib.abc import Loader

_TRIGGER = "transformers.models.auto.modeling_auto"
_config_classes: tuple[str, ...] = ()


def register_when_imported(config_classes: Iterable[str]) -> None:
    """Register ``Surgery<X>`` for each config class name ``<X>``, now or when transformers is imported.

    Args:
        config_classes: names of transformers' config classes, for example ``LlamaConfig``.
    """
    global _config_classes  # noqa: PLW0603
    _config_classes = tuple(config_classes)
    if _TRIGGER in sys.modules:
        _register()
    elif not any(isinstance(finder, _AfterImport) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterImport())


def _register() -> None:
    import transformers
    from transformers import AutoConfig

    from surgery.runtime import modeling_surgery

    for name in _config_classes:
        # What this version of transformers lacks, nothing can load; there is nothing to register.
        if hasattr(transformers, name):
            config_class = getattr(modeling_surgery, modeling_surgery.PREFIX + name)
            AutoConfig.register(config_class.model_type, config_class, exist_ok=True)


class _AfterImport:
    """Finds one module by the usual way and runs :func:`_register` once it is executed.

    It and its loader have the methods that the import system calls and no base class: importlib.abc alone would cost
    a quarter of what ``import surgery`` may take.
    """

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != _TRIGGER:
            return None
        # It stays until the module is executed: a look-up may be no import (transformers makes such look-ups itself).
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _ThenRegister(spec.loader)  # type: ignore[assignment]
        return spec


class _ThenRegister:
    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, _AfterImport)]
        _register()
