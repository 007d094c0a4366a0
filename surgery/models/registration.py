"""Register the model classes of this package with transformers' auto classes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from surgery.models.catalogue import own_model

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def own_config(model_type: str) -> type[PretrainedConfig] | None:
    """The config class of a model type of this package, after its model class was registered; else None."""
    own = own_model(model_type)
    if own is None:
        return None
    from transformers import AutoModelForCausalLM

    config_class, model_class = own.classes()
    AutoModelForCausalLM.register(config_class, model_class, exist_ok=True)
    return config_class
