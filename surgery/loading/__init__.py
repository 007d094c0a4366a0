"""Load a model and its tokenizer with the device, dtype and attention backend that the user asked for."""

from surgery.loading.environment import environment
from surgery.loading.model import load_model, load_tokenizer
from surgery.loading.operations import operation_modules, operation_of, operations_off, switch_off
from surgery.loading.run_options import RunOptions, pick_device

__all__ = [
    "RunOptions",
    "environment",
    "load_model",
    "load_tokenizer",
    "operation_modules",
    "operation_of",
    "operations_off",
    "pick_device",
    "switch_off",
]
