"""Load a model and its tokenizer with the device, dtype and attention backend that the user asked for."""

from surgery.loading.environment import environment
from surgery.loading.model import RunOptions, load_model, load_tokenizer, pick_device
from surgery.loading.switching import changed_rope, operation_modules, operations_off, rotary_modules, switch_off

__all__ = [
    "RunOptions",
    "changed_rope",
    "environment",
    "load_model",
    "load_tokenizer",
    "operation_modules",
    "operations_off",
    "pick_device",
    "rotary_modules",
    "switch_off",
]
