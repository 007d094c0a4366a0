"""Operate on the attention of existing language-model checkpoints.

Importing this package is light (no torch) and makes ``AutoModelForCausalLM.from_pretrained`` know converted
checkpoints, now or when transformers is imported later.
"""

from surgery.anatomy import FAMILIES as _FAMILIES
from surgery.runtime.registration import register_when_imported as _register_when_imported

__version__ = "0.1.0"


def register() -> None:
    """Register the operated model types with transformers' auto classes; ``import surgery`` does it by itself."""
    _register_when_imported(family.config_class for family in _FAMILIES.values())


register()
