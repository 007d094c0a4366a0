"""The modelling code as the installed package runs it, with every operation of the catalogue.

``AutoModelForCausalLM.from_pretrained`` gives these classes after ``import surgery``. In a checkpoint lies another
module of this name, which imports its own operations alone; what is saved here gets that one.
"""

from __future__ import annotations

import os
from importlib import import_module
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from surgery.runtime import models
from surgery.runtime.attention import PREFIX, operated_attention
from surgery.runtime.models import (
    CACHE_NAMES,
    FORMAT_VERSION,
    SurgeryConfigMixin,
    base_model_of,
    class_for,
    install,
    lock,
    stock_class,
    unlock,
)
from surgery.runtime.operation import IN_CONFIG_ALONE, VISIBLE_KEYS, OperationModule
from surgery.runtime.visible_keys import count_visible_keys

__all__ = [
    "CACHE_NAMES",
    "FORMAT_VERSION",
    "PREFIX",
    "VISIBLE_KEYS",
    "OperationModule",
    "base_model_of",
    "count_visible_keys",
    "lock",
    "operate",
    "operated_attention",
    "unlock",
]

# Imported by its name: the catalogue of operations stands above this room.
_catalogue: Any = import_module("surgery.operations.code")
for _operation in _catalogue.OPERATIONS.values():
    if _operation.code_package is None:
        IN_CONFIG_ALONE.add(_operation.name)
    else:
        import_module(_operation.code_package)


def operate(model: PreTrainedModel, block: dict[str, Any]) -> None:
    """Put operations on a model in memory, at their start values; ``block`` is as ``surgery`` in config.json."""
    base_model = base_model_of(model)
    model.config.surgery = block
    if base_model is not model and not isinstance(base_model, models.SurgeryModelMixin):
        base_model.__class__ = class_for(PREFIX + type(base_model).__name__)
    install(base_model, model.config)
    base_model.to(model.device)


class InstalledConfigMixin(SurgeryConfigMixin):
    """A config class of the installed package: tells the auto classes of its model, and saves the code that travels."""

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As the travelling class."""
        _register_auto_classes(cls)
        return super().from_dict(config_dict, **kwargs)

    def to_json_file(self, json_file_path: str | os.PathLike[str], *args: Any, **kwargs: Any) -> None:
        """As transformers' own. In ``save_pretrained``, this module's copy beside the file gives way to the code.

        transformers copies the source of a class before it writes its config, and uploads both afterwards.
        """
        super().to_json_file(json_file_path, *args, **kwargs)  # type: ignore[misc]
        copy, own = Path(json_file_path).with_name(_catalogue.ENTRY_NAME), Path(__file__)
        if copy.is_file() and not copy.samefile(own) and copy.read_bytes() == own.read_bytes():
            operations = self.surgery["operations"]  # type: ignore[attr-defined]
            for name, content in _catalogue.travelling_code(options["name"] for options in operations).items():
                copy.with_name(name).write_bytes(content)


models.CONFIG_BASES.append(InstalledConfigMixin)


def _register_auto_classes(config_class: type[Any]) -> None:
    """Tell the auto classes which model belongs to a config class that the package registered."""
    from transformers import AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    if CONFIG_MAPPING._extra_content.get(config_class.model_type) is not config_class:
        return
    stock: Any = stock_class(config_class)
    auto: Any
    for auto in (AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText):
        # A model of vision and language answers to AutoModelForCausalLM too, as it does by auto_map.
        known = (AutoModelForImageTextToText, auto) if auto is AutoModelForCausalLM else (auto,)
        found: list[Any] = [other._model_mapping[stock] for other in known if stock in other._model_mapping]
        if found and config_class not in auto._model_mapping._extra_content:
            auto.register(config_class, class_for(PREFIX + found[0].__name__), exist_ok=True)


def __getattr__(name: str) -> Any:
    if not name.startswith(PREFIX):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return class_for(name)
