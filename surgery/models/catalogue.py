"""The list of all architectures."""

from __future__ import annotations

from types import MappingProxyType

from surgery.models.base import Architecture
from surgery.models.decoder import DecoderArchitecture
from surgery.models.multiscreen import MultiscreenArchitecture
from surgery.models.operated import OperatedArchitecture
from surgery.models.own_model import OwnModel
from surgery.operations import OPERATIONS

ARCHITECTURES: MappingProxyType[str, Architecture] = MappingProxyType(
    {
        architecture.name: architecture
        for architecture in (
            DecoderArchitecture(),
            MultiscreenArchitecture(),
            *(OperatedArchitecture(operation) for operation in OPERATIONS.values() if operation.initial_options),
        )
    }
)


def own_model(model_type: str) -> OwnModel | None:
    """The model class of this package for a model type of config.json, or None."""
    own = (architecture.own_model for architecture in ARCHITECTURES.values())
    return next((model for model in own if model is not None and model.model_type == model_type), None)
