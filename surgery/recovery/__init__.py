"""Recovery after an operation: a strict recipe, a training run that can be interrupted, a full checkpoint as result.

Nothing here imports torch until a run begins.
"""

from surgery.recovery.errors import DivergedError, RecipeError, TrainingStoppedError
from surgery.recovery.merging import MergeResult, merge
from surgery.recovery.planning import FinetunePlan
from surgery.recovery.reading import (
    Setting,
    dump_recipe,
    environment_overrides,
    explain_recipe,
    placeholders,
    read_recipe,
)
from surgery.recovery.recipe import Recipe, json_schema
from surgery.recovery.running import finetune
from surgery.recovery.session import FinetuneResult
from surgery.schemas import Problem

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
