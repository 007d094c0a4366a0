"""Screening: keys are rejected by an absolute threshold on their relevance and a window, per head."""

from surgery.operations.screening.operation import SOFTNESS, ScreeningOperation, open_start
from surgery.operations.screening.options import PARAMETERS, UNIT_PARAMETERS, ScreeningOptions

__all__ = [
    "PARAMETERS",
    "SOFTNESS",
    "UNIT_PARAMETERS",
    "ScreeningOperation",
    "ScreeningOptions",
    "open_start",
]
