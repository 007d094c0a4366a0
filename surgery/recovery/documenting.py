"""What every key of a recipe means, as Markdown made from the schema, so that the two cannot differ."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator
from typing import Any, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from surgery.recovery.recipe import Recipe, json_schema
from surgery.schemas.unions import TAGS, models_in


def reference() -> str:
    """One section for each key of a recipe."""
    schema = json_schema()
    parts = []
    for name, field in Recipe.model_fields.items():
        parts.append("\n".join(_section(name, field, schema)))
    return "\n\n".join(parts) + "\n"


def _section(name: str, field: FieldInfo, schema: dict[str, Any]) -> Iterator[str]:
    yield f"### `{name}`"
    if field.description:
        yield ""
        yield _sentence(field.description)
    members = list(models_in(field.annotation))
    own = schema["properties"][name]
    if not members:
        yield ""
        yield f"{_kind(own, schema)}; {_default(field)}."
        return
    several = len(members) > 1
    for member in members:
        yield from _member(member, schema, f"#### `{_tag(member)}`" if several else None)


def _member(member: type[BaseModel], schema: dict[str, Any], heading: str | None) -> Iterator[str]:
    if heading is not None:
        yield ""
        yield heading
    yield ""
    yield inspect.cleandoc(member.__doc__ or "").partition("\n\nAttributes:")[0].replace("``", "`")
    rows = list(_rows(member, schema["$defs"][member.__name__], schema))
    if rows:
        yield ""
        yield "| key | value | default | meaning |"
        yield "|---|---|---|---|"
        yield from rows
    for key, field in member.model_fields.items():
        # Lists of sections, as data.sources; a stage's sections are those above.
        inner = list(models_in(field.annotation))
        if get_origin(field.annotation) is list and inner:
            for own in inner:
                yield from _member(own, schema, f"#### an item of `{key}`: `{_tag(own)}`")


def _rows(model: type[BaseModel], own: dict[str, Any], schema: dict[str, Any]) -> Iterator[str]:
    for key, field in model.model_fields.items():
        if key in TAGS and "const" in own["properties"][key]:
            continue
        value = _kind(own["properties"][key], schema).replace("|", "\\|")
        meaning = _sentence(field.description or _attribute(model, key)).replace("|", "\\|")
        yield f"| `{key}` | {value} | {_default(field, short=True)} | {meaning} |"


def _attribute(model: type[BaseModel], key: str) -> str:
    """What the docstring of a model, or of one that it derives from, says of an attribute."""
    for own in model.__mro__:
        _, _, attributes = inspect.cleandoc(own.__doc__ or "").partition("Attributes:\n")
        found = re.search(rf"^    {key}: (.+(?:\n     +.+)*)", attributes, re.MULTILINE)
        if found:
            return re.sub(r"\s+", " ", found[1]).replace("``", "`")
    return ""


def _kind(own: dict[str, Any], schema: dict[str, Any]) -> str:
    if "const" in own:
        return f"`{json.dumps(own['const']).strip(chr(34))}`"
    if "enum" in own:
        return " or ".join(f"`{value}`" for value in own["enum"])
    options = own.get("anyOf") or own.get("oneOf")
    if options:
        kinds = [_kind(option, schema) for option in options if option.get("type") != "null"]
        return " or ".join(dict.fromkeys(kinds))
    if "$ref" in own:
        return "section"
    if own.get("type") == "array":
        return f"list of {_kind(own['items'], schema)}"
    words = {"integer": "whole number", "number": "number", "boolean": "`true` or `false`", "string": "text"}
    return words.get(str(own.get("type")), "value")


def _default(field: FieldInfo, *, short: bool = False) -> str:
    if field.is_required():
        return "needed"
    value = field.default
    if value is None or isinstance(value, BaseModel):
        return "" if short else "left out by default"
    text = f"`{json.dumps(value)}`"
    return text if short else f"by default {text}"


def _tag(model: type[BaseModel]) -> str:
    for key in TAGS:
        if key in model.model_fields:
            return f"{key}: {get_args(model.model_fields[key].annotation)[0]}"
    return model.__name__


def _sentence(text: str) -> str:
    return text if text.endswith((".", ":")) else f"{text}."
