"""The sections of a recipe that belong to operations."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Optional

from pydantic import Field, create_model

from surgery.operations import OPERATIONS
from surgery.schemas.section import Section

# Key of a recipe -> the operation that it belongs to.
OWNERS: Mapping[str, str] = MappingProxyType(
    {key: name for name, operation in OPERATIONS.items() for key in operation.recipe_sections}
)


def _fields(*, in_a_stage: bool) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for operation in OPERATIONS.values():
        for key, section in operation.recipe_sections.items():
            field = Field(default=None, description=section.help if in_a_stage else None)
            found[key] = (Optional[section.schema], field)  # noqa: UP045  (the schema is a value here)
    return found


# Base classes of a recipe and of a stage, with a field for each section of an operation.
if TYPE_CHECKING:

    class RecipeSections(Section):
        """Fields of operations, in a recipe."""

    class StageSections(Section):
        """Fields of operations, in a stage."""
else:
    RecipeSections = create_model("RecipeSections", __base__=Section, __module__=__name__, **_fields(in_a_stage=False))
    StageSections = create_model("StageSections", __base__=Section, __module__=__name__, **_fields(in_a_stage=True))


def given_sections(recipe: Section, operation: str | None = None) -> dict[str, Any]:
    """The sections of operations that a recipe gives, by key.

    Args:
        recipe: a recipe or a stage.
        operation: only the sections of this operation.
    """
    found = {key: getattr(recipe, key) for key, owner in OWNERS.items() if operation in (None, owner)}
    return {key: section for key, section in found.items() if section is not None}


def changes_model(recipe: Section) -> bool:
    """Whether a given section changes the model, so that the source model can teach it."""
    return any(OPERATIONS[OWNERS[key]].recipe_sections[key].changes_model for key in given_sections(recipe))
