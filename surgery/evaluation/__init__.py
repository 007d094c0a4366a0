"""Evaluation: measures of a model, compared with its base, as plain data.

One folder for each measure, listed in ``measures.py``; the files beside them are shared by all measures.
"""

from surgery.evaluation.api import evaluate
from surgery.evaluation.assembly import assemble
from surgery.evaluation.history import training_history
from surgery.evaluation.results import EvaluationResult
from surgery.evaluation.suite import Suite, SuiteError, read_suite

__all__ = ["EvaluationResult", "Suite", "SuiteError", "assemble", "evaluate", "read_suite", "training_history"]
