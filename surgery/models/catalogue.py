"""The list of all architectures."""

from __future__ import annotations

from types import MappingProxyType

from surgery.models.base import Architecture
from surgery.models.decoder import DecoderArchitecture
from surgery.models.multiscreen import MultiscreenArchitecture
from surgery.models.operated import OperatedArchitecture
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
