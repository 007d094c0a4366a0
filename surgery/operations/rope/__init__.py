"""RoPE: rotary positions changed so that the model reads texts longer than it was trained at. In config.json alone."""

from surgery.operations.rope.frequencies import frequencies
from surgery.operations.rope.operation import RopeOperation
from surgery.operations.rope.options import TYPES, RopeOptions

__all__ = ["TYPES", "RopeOperation", "RopeOptions", "frequencies"]
