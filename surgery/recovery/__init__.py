"""Recovery after an operation: a recipe, a training run that can be resumed, and a full checkpoint as result.

Nothing here imports torch before a run starts.
"""

from surgery.recovery.api import finetune
from surgery.recovery.errors import RecipeError
from surgery.recovery.logit_comparison import MergeResult
from surgery.recovery.plan import FinetunePlan
from surgery.recovery.recipe import Recipe, json_schema
from surgery.recovery.recipe_file import (
    Setting,
    dump_recipe,
    environment_overrides,
    explain_recipe,
    placeholders,
    read_recipe,
)
from surgery.recovery.result import FinetuneResult
from surgery.recovery.weight_merge import merge
from surgery.schemas import Problem
from surgery.training.errors import DivergedError, TrainingStoppedError

__all__ = [
    "DivergedError",
    "FinetunePlan",
    "FinetuneResult",
    "MergeResult",
    "Problem",
    "Recipe",
    "RecipeError",
    "Setting",
    "TrainingStoppedError",
    "dump_recipe",
    "environment_overrides",
    "explain_recipe",
    "finetune",
    "json_schema",
    "merge",
    "placeholders",
    "read_recipe",
]
