"""RoPE: rotary positions for texts longer than the trained length. A change of config.json only."""

from surgery.operations.rope.frequencies import frequencies
from surgery.operations.rope.operation import RopeOperation
from surgery.operations.rope.options import TYPES, RopeOptions

__all__ = ["TYPES", "RopeOperation", "RopeOptions", "frequencies"]
