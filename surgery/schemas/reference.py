"""The keys of a schema as Markdown tables (value, default, meaning), from the pydantic model."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from surgery.schemas.unions import TAGS, models_in

_TYPES = {"integer": "integer", "number": "number", "boolean": "`true` or `false`", "string": "text"}
# Values that people write with a unit; a schema names them by `format`.
_FORMATS = {"size": "size, such as `4 GB`", "duration": "time, such as `1h30m`"}
_BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
# Larger bounds only prevent overflow, so they are not shown.
_LARGEST_BOUND = 2048


def reference(root: type[BaseModel], *, elsewhere: Mapping[type[BaseModel], str] | None = None) -> str:
    """A table of all keys, then a section for each key with nested keys.

    Args:
        root: the schema.
        elsewhere: models that another page describes, with a Markdown link to each.
    """
    return _Page(root, elsewhere or {}).text()


def key_table(model: type[BaseModel]) -> str:
    """The table of one model's keys."""
    return "\n".join(_Page(model, {}).table(model))


def summary(model: type[BaseModel]) -> str:
    """The docstring of a model as Markdown, without the list of its attributes."""
    return inspect.cleandoc(model.__doc__ or "").partition("Attributes:\n")[0].strip().replace("``", "`")


class _Page:
    def __init__(self, root: type[BaseModel], elsewhere: Mapping[type[BaseModel], str]) -> None:
        self.root = root
        self.links = dict(elsewhere)
        self.definitions = root.model_json_schema()
        for key, field in root.model_fields.items():
            for member in models_in(field.annotation):
                self.links.setdefault(member, f"[`{key}`](#{key})")
        self.elsewhere = set(elsewhere)

    def text(self) -> str:
        lines = list(self.table(self.root))
        for key, field in self.root.model_fields.items():
            members = [member for member in models_in(field.annotation) if member not in self.elsewhere]
            if members:
                lines += ["", f"## `{key}`"]
                lines += self.members(key, field, members, level=3)
        return "\n".join(lines) + "\n"

    def members(self, key: str, field: FieldInfo, members: list[type[BaseModel]], *, level: int) -> Iterator[str]:
        for member in members:
            if len(members) > 1:
                yield from ("", f"{'#' * level} `{_tag(member)}`")
            yield from ("", summary(member))
            rows = list(self.table(member))
            if len(rows) > 2:
                yield from ("", *rows)
            for name, inner in member.model_fields.items():
                own = [model for model in models_in(inner.annotation) if model not in self.links]
                if own:
                    yield from ("", f"{'#' * level} `{key}.{name}`")
                    yield from self.members(f"{key}.{name}", inner, own, level=level + 1)

    def table(self, model: type[BaseModel]) -> Iterator[str]:
        schema = self.definitions if model is self.root else self.definitions["$defs"][model.__name__]
        yield "| key | value | default | meaning |"
        yield "|---|---|---|---|"
        for key, field in model.model_fields.items():
            own = schema["properties"][key]
            if key in TAGS and "const" in own:
                continue
            value = self.value(own, key, field)
            meaning = _sentence(field.description or _attribute(model, key) or self.meaning(field))
            cells = (f"`{key}`", value, _default(field), meaning)
            yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"

    def meaning(self, field: FieldInfo) -> str:
        """The meaning of a key without a description: the first sentence of its model, or the names of its models."""
        members = list(models_in(field.annotation))
        if len(members) == 1:
            return re.split(r"(?<=\.)\s", summary(members[0]))[0]
        return f"One of {', '.join(f'`{_tag(member)}`' for member in members)}" if members else ""

    def value(self, own: dict[str, Any], key: str, field: FieldInfo) -> str:
        """The values of a key, in words; nested keys as a link to their section."""
        members = list(models_in(field.annotation))
        if not members:
            return _kind(own)
        # Models that have their section under another key, as the sections of a stage.
        links = dict.fromkeys(self.links.get(member, "section") for member in members)
        if self.root.model_fields.get(key) is field and not self.elsewhere.issuperset(members):
            links = {f"[section](#{key})": None}
        listed = get_origin(_without_none(field.annotation)) is list
        plain = [_kind(option) for option in own.get("anyOf", ()) if "enum" in option or option.get("type") == "string"]
        return " or ".join([*plain, *(f"list of {link}" if listed else link for link in links)])


def _without_none(annotation: Any) -> Any:
    members = [member for member in get_args(annotation) if member is not type(None)]
    return members[0] if len(members) == 1 and type(None) in get_args(annotation) else annotation


def _attribute(model: type[BaseModel], key: str) -> str:
    """The description of an attribute in the docstring of a model or of its base classes."""
    for own in model.__mro__:
        _, _, attributes = inspect.cleandoc(own.__doc__ or "").partition("Attributes:\n")
        found = re.search(rf"^    {key}: (.+(?:\n     +.+)*)", attributes, re.MULTILINE)
        if found:
            return re.sub(r"\s+", " ", found[1]).replace("``", "`")
    return ""


def _kind(own: dict[str, Any]) -> str:
    """A type of JSON Schema in words."""
    if "const" in own:
        return f"`{json.dumps(own['const']).strip(chr(34))}`"
    if "enum" in own:
        return " or ".join(f"`{value}`" for value in own["enum"])
    options = own.get("anyOf") or own.get("oneOf")
    if options:
        kinds = [_kind(option) for option in options if option.get("type") != "null"]
        return " or ".join(dict.fromkeys(kinds))
    if own.get("format") in _FORMATS:
        return _FORMATS[own["format"]]
    if own.get("type") == "object":
        inner = own.get("additionalProperties")
        return f"{_kind(inner)} by name" if isinstance(inner, dict) and inner.get("type") != "object" else "mapping"
    if own.get("type") == "array":
        return f"list of {_kind(own['items'])}" if "items" in own else "list"
    bounds = [
        f"{sign} {own[bound]:g}" for bound, sign in _BOUNDS.items() if abs(own.get(bound, 2**63)) <= _LARGEST_BOUND
    ]
    return " ".join([_TYPES.get(str(own.get("type")), "value"), ", ".join(bounds)]).strip()


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True) if field.default_factory is None else None
    if isinstance(value, BaseModel):
        tagged = any(key in type(value).model_fields for key in TAGS)
        return f"`{_tag(type(value))}`" if tagged else ""
    if value is None:
        # Some fields describe in words what holds without a value.
        return next((words for item in field.metadata if (words := getattr(item, "absent", None))), "")
    return f"`{json.dumps(value)}`"


def _tag(model: type[BaseModel]) -> str:
    for key in TAGS:
        if key in model.model_fields:
            return f"{key}: {get_args(model.model_fields[key].annotation)[0]}"
    return model.__name__


def _sentence(text: str) -> str:
    return text if not text or text.endswith((".", ":")) else f"{text}."
