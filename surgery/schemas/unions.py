"""The members of the unions in a recipe's schema, for those who explain faults and those who document keys."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, get_args, get_origin

from pydantic import BaseModel

# The keys that tell the members of a union apart.
TAGS = ("what", "name", "kind")


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """Every model that a type names, through unions, lists and ``Annotated``, in order."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif get_origin(annotation) is Annotated:
        yield from models_in(get_args(annotation)[0])
    else:
        for argument in get_args(annotation):
            yield from models_in(argument)
