"""Evaluation: measures of a model, compared with its base, as plain data.

One folder for each measure, listed in ``measures.py``; the files beside them are shared by all measures.
"""

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
