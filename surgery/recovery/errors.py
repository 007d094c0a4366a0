"""The error of recipes."""

from __future__ import annotations

from surgery.schemas import SchemaError


class RecipeError(SchemaError):
    """A recipe is not valid; ``problems`` lists every fault (exit code 2)."""
