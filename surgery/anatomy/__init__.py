"""The attention of a model, layer by layer, from config.json and tensor names; the families as data."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from surgery.anatomy.anatomy import Anatomy, AttentionLayer, Rope, read_anatomy
    from surgery.anatomy.families import FAMILIES, REFUSED, Family, find_family

__all__ = ["FAMILIES", "REFUSED", "Anatomy", "AttentionLayer", "Family", "Rope", "find_family", "read_anatomy"]

_TABLE = ("FAMILIES", "REFUSED", "Family", "find_family")


def __getattr__(name: str) -> Any:
    # `import surgery` needs neither: they import the whole checkpoint room.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{'families' if name in _TABLE else 'anatomy'}"), name)
