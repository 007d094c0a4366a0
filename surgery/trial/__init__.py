"""A trial of a model: which operation helps it at a length, each against its control, within a few minutes.

``preparation`` finds what can be tried, ``plan`` shrinks the work until it fits into the time, ``run`` calibrates and
measures, and ``recommendation`` says what the intervals allow to say.
"""

from typing import TYPE_CHECKING

from surgery.lazy import lazy_names

if TYPE_CHECKING:
    from surgery.trial.api import plan_trial, try_model
    from surgery.trial.plan import TrialPlan
    from surgery.trial.result import TrialResult

__all__ = ["TrialPlan", "TrialResult", "plan_trial", "try_model"]

__getattr__ = lazy_names(
    __name__, {"TrialPlan": "plan", "TrialResult": "result", "plan_trial": "api", "try_model": "api"}
)
