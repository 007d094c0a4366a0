"""The core of the code that travels in a converted checkpoint, and the same classes for the installed package."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from surgery.runtime.modeling_surgery import (
        CACHE_NAMES,
        VISIBLE_KEYS,
        base_model_of,
        count_visible_keys,
        lock,
        operate,
        operated_attention,
        unlock,
    )

__all__ = [
    "CACHE_NAMES",
    "VISIBLE_KEYS",
    "base_model_of",
    "count_visible_keys",
    "lock",
    "operate",
    "operated_attention",
    "unlock",
]


def __getattr__(name: str) -> Any:
    # On first use, so that `import surgery` stays free of torch.
    if name not in __all__:
        raise AttributeError(f"module 'surgery.runtime' has no attribute {name!r}")
    return getattr(import_module("surgery.runtime.modeling_surgery"), name)
