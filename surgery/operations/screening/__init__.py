"""Screening: keys are rejected by an absolute threshold on their relevance and a window, per head."""

from surgery.operations.screening.operation import PENDING, Screening
from surgery.operations.screening.options import PARAMETERS, ScreeningOptions

__all__ = ["PARAMETERS", "PENDING", "Screening", "ScreeningOptions"]
