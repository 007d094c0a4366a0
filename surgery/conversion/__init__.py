"""Converting a checkpoint: first a plan, a small value that can be printed and compared; then exactly that plan."""

from surgery.checkpoint.record import FORMAT_VERSION, PLAN_NAME, RECORD_FOLDER
from surgery.conversion.code_refresh import RefreshResult, refresh
from surgery.conversion.execution import ConversionResult, convert, execute
from surgery.conversion.plan import Plan, make_plan
from surgery.conversion.reversion import RevertResult, revert

__all__ = [
    "FORMAT_VERSION",
    "PLAN_NAME",
    "RECORD_FOLDER",
    "ConversionResult",
    "Plan",
    "RefreshResult",
    "RevertResult",
    "convert",
    "execute",
    "make_plan",
    "refresh",
    "revert",
]
