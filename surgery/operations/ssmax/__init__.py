"""SSMax: a learned scale per head times ln n in place of the fixed scale of softmax (arXiv 2501.19399)."""

from surgery.operations.ssmax.operation import SSMaxOperation
from surgery.operations.ssmax.options import FORMS, SSMaxOptions

__all__ = ["FORMS", "SSMaxOperation", "SSMaxOptions"]
