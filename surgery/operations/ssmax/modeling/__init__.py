"""The code that travels in a checkpoint with SSMax."""

from surgery.operations.ssmax.modeling.multiplier import SSMax, multiplier

__all__ = ["SSMax", "multiplier"]
