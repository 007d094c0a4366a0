"""The models inside the types of a schema: members of unions and items of lists."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, get_args, get_origin

from pydantic import BaseModel

# Keys whose value selects a member of a union.
TAGS = ("what", "name", "kind")


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """Every model in a type, through unions, lists and ``Annotated``, in order."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif get_origin(annotation) is Annotated:
        yield from models_in(get_args(annotation)[0])
    else:
        for argument in get_args(annotation):
            yield from models_in(argument)
