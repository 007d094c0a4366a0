"""Evaluation: measures of a model, compared with its base, as plain data.

One folder for each measure, listed in ``measures.py``; the files beside them are shared by all measures.
"""

from typing import TYPE_CHECKING

from surgery.lazy import lazy_names

if TYPE_CHECKING:
    from surgery.evaluation.api import evaluate, plan_evaluation
    from surgery.evaluation.assembly import assemble
    from surgery.evaluation.history import training_history
    from surgery.evaluation.results import EvaluationResult
    from surgery.evaluation.suite import Suite, SuiteError, read_suite
    from surgery.evaluation.workload import EvaluationPlan

__all__ = [
    "EvaluationPlan",
    "EvaluationResult",
    "Suite",
    "SuiteError",
    "assemble",
    "evaluate",
    "plan_evaluation",
    "read_suite",
    "training_history",
]

__getattr__ = lazy_names(
    __name__,
    {
        "EvaluationPlan": "workload",
        "EvaluationResult": "results",
        "Suite": "suite",
        "SuiteError": "suite",
        "assemble": "assembly",
        "evaluate": "api",
        "plan_evaluation": "api",
        "read_suite": "suite",
        "training_history": "history",
    },
)
