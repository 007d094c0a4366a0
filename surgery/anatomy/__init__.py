"""What a model's attention looks like: families as data, and reading it off config.json and tensor names."""

from typing import TYPE_CHECKING, Any

from surgery.anatomy.families import FAMILIES, REFUSED, Family, find_family

if TYPE_CHECKING:
    from surgery.anatomy.reading import Anatomy, AttentionLayer, Rope, read_anatomy

__all__ = ["FAMILIES", "REFUSED", "Anatomy", "AttentionLayer", "Family", "Rope", "find_family", "read_anatomy"]


def __getattr__(name: str) -> Any:
    # `import surgery` needs the families' names only; reading brings in the whole checkpoint room.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from surgery.anatomy import reading

    return getattr(reading, name)
