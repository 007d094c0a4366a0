"""Make the auto classes of transformers know the operated model types, without importing transformers too early.

``import surgery`` must stay light, and transformers takes seconds. So the types are registered when transformers is
imported, whichever of the two comes first.
"""

from __future__ import annotations

import importlib.machinery
import sys
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from importlib.abc import Loader

_TRIGGER = "transformers.models.auto.modeling_auto"
_config_classes: Callable[[], Mapping[str, str]] = dict
_own_config: Callable[[str], Any] = {}.get  # type: ignore[assignment]


def register_when_imported(config_classes: Callable[[], Mapping[str, str]]) -> None:
    """Register ``surgery_<type>`` for each model type, now or when transformers is imported.

    Args:
        config_classes: gives model type -> name of transformers' config class, for example ``LlamaConfig``; asked only
            once transformers is there.
    """
    global _config_classes  # noqa: PLW0603
    _config_classes = config_classes
    if _TRIGGER in sys.modules:
        _register()
    elif not any(isinstance(finder, _AfterImport) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterImport())


def register_own(config_class: Callable[[str], Any]) -> None:
    """Make the auto classes know model types that transformers does not have.

    Args:
        config_class: gives the config class of a model type, and registers its model; None for an unknown type. It is
            asked only for types that are loaded and that transformers does not know.
    """
    global _own_config  # noqa: PLW0603
    _own_config = config_class


def _register() -> None:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    known: Any = CONFIG_MAPPING
    types = {f"surgery_{name}": config for name, config in _config_classes().items() if name in known._mapping}
    # What this version of transformers lacks, nothing can load; there is nothing to register.
    known._extra_content = _LazyTypes({**types, **known._extra_content})


class _LazyTypes(dict[str, Any]):
    """Config classes by model type, made when they are asked for.

    ``AutoConfig.register`` wants the class at once, and importing every family's config takes longer than the rest of
    transformers; it also fails where transformers is just importing one of them.
    """

    def __contains__(self, model_type: object) -> bool:
        if super().__contains__(model_type):
            return True
        found = _own_config(str(model_type))
        if found is not None:
            self[str(model_type)] = found
        return found is not None

    def __getitem__(self, model_type: str) -> Any:
        found = super().__getitem__(model_type)
        if isinstance(found, str):
            from surgery.runtime import modeling_surgery

            found = getattr(modeling_surgery, modeling_surgery.PREFIX + found)
            self[model_type] = found
        return found

    def get(self, model_type: str, default: Any = None) -> Any:
        try:
            return self[model_type]
        except KeyError:
            return default

    def values(self) -> Any:
        return [self[model_type] for model_type in self]

    def items(self) -> Any:
        return [(model_type, self[model_type]) for model_type in self]


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
