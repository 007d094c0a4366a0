"""Errors of pydantic as problems: the path and line of the key, and the nearest valid key."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from surgery.errors import shown
from surgery.schemas.schema import Problem, Schema
from surgery.schemas.unions import TAGS, models_in
from surgery.schemas.yaml_text import Keys, dotted
from surgery.words import nearest

# A key that is less like its neighbours may be right elsewhere, which says more than a guess.
_NEAR = 0.7


def problems_of(error: ValidationError, data: dict[str, Any], lines: dict[Keys, int], schema: Schema) -> list[Problem]:
    """The errors that pydantic found in ``data``, one for each key."""
    return _merged(_problem(fault, data, lines, schema) for fault in error.errors(include_url=False))


def _merged(problems: Iterable[Problem]) -> list[Problem]:
    """One problem for each key: a union of two types gives one error for each type."""
    messages: dict[tuple[str, int | None], list[str]] = {}
    for problem in problems:
        messages.setdefault((problem.path, problem.line), []).append(problem.message)
    return [Problem(path, line, ", or ".join(dict.fromkeys(found))) for (path, line), found in messages.items()]


def _problem(fault: Any, data: dict[str, Any], lines: dict[Keys, int], schema: Schema) -> Problem:
    path = _in_data(fault["loc"], data, missing=fault["type"] == "missing")
    if fault["type"] == "missing_key":
        path = (*path, fault["ctx"]["key"])
    line = next((lines[path[:end]] for end in range(len(path), 0, -1) if path[:end] in lines), None)
    if path and path not in lines and fault["type"] == "extra_forbidden":
        line = None  # from --set
    return Problem(dotted(path), line, _message(fault, path, schema))


def _in_data(location: Keys, data: Any, *, missing: bool) -> Keys:
    """The location of pydantic without the names of union members, which are not keys."""
    path: list[str | int] = []
    here = data
    for position, part in enumerate(location):
        is_last = position == len(location) - 1
        if (isinstance(here, dict) and part in here) or (
            isinstance(here, list) and isinstance(part, int) and part < len(here)
        ):
            here = here[part]  # type: ignore[index]
        elif not (missing and is_last):
            continue
        path.append(part)
    return tuple(path)


def _message(fault: Any, path: Keys, schema: Schema) -> str:
    kind = fault["type"]
    if kind == "extra_forbidden":
        return _unknown_key(path, fault["loc"], schema)
    if kind in ("missing", "missing_key"):
        return "missing"
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        tags = fault["ctx"].get("expected_tags") or ""
        if kind == "union_tag_invalid":
            return _unknown_tag(fault["ctx"], tags)
        return f"must say {fault['ctx']['discriminator']}{f', one of {tags}' if tags else ''}"
    message = fault["msg"].removeprefix("Value error, ")
    given = fault.get("input")
    # A message of surgery may start with the wrong value or a part of it.
    if isinstance(given, dict | BaseModel) or given is None or message.startswith("'"):
        return message
    if isinstance(given, float) and not math.isfinite(given):
        given = str(given)
    return f"{message[0].lower()}{message[1:]}, not {shown(given)}"


def _unknown_tag(context: Any, tags: str) -> str:
    close = nearest(context["tag"], [tag.strip(" '") for tag in tags.split(",")], least=_NEAR)
    guess = f"did you mean `{close}`? One of {tags}" if close is not None else f"one of {tags}"
    return f"unknown {context['discriminator'].strip(chr(39))} {shown(context['tag'])}; {guess}"


def _unknown_key(path: Keys, location: Keys, schema: Schema) -> str:
    key = str(path[-1])
    siblings = list(_model_at(location[:-1], schema.root).model_fields)
    close = nearest(key, siblings, least=_NEAR)
    if close is not None:
        return f"unknown key; did you mean `{close}`?"
    others = [
        f"{tag_key}: {tag}"
        for member, tag_key, tag in _members_beside(location[:-1], schema.root)
        if key in member.model_fields
    ]
    if others:
        return f"has no effect here; only with `{'` or `'.join(others)}`"
    homes = [home for home, name in _all_keys(schema) if name == key and home]
    if homes:
        return f"unknown key here; it belongs under {' or '.join(f'`{home}`' for home in dict.fromkeys(homes))}"
    if key in schema.root.model_fields:
        return "unknown key here; it belongs at the top level"
    everywhere = {name: f"{home}.{name}" if home else name for home, name in _all_keys(schema)}
    far = nearest(key, everywhere, least=_NEAR)
    if far is not None:
        return f"unknown key; did you mean `{everywhere[far]}`?"
    return f"unknown key; valid here: {', '.join(siblings)}"


def _members_beside(location: Keys, root: type[BaseModel]) -> Iterator[tuple[type[BaseModel], str, str]]:
    """The members of the union at a location, each with its discriminator and tag."""
    model = root
    field = None
    for part in location:
        if part in model.model_fields:
            field = model.model_fields[str(part)]
            model = next(models_in(field.annotation), model)
    members = list(models_in(field.annotation)) if field is not None else []
    for member in members if len(members) > 1 else []:
        for key in TAGS:
            if key in member.model_fields:
                for tag in _literals(member, key):
                    yield member, key, tag


def _model_at(location: Keys, root: type[BaseModel]) -> type[BaseModel]:
    model = root
    members: list[type[BaseModel]] = []
    for part in location:
        if part in model.model_fields:
            members = list(models_in(model.model_fields[str(part)].annotation))
            model = members[0] if members else model
        else:  # the tag of a union's member
            model = next((member for member in members if part in _tags(member)), model)
    return model


def _tags(model: type[BaseModel]) -> set[str]:
    return {tag for name in TAGS if name in model.model_fields for tag in _literals(model, name)}


def _literals(model: type[BaseModel], name: str) -> tuple[Any, ...]:
    return get_args(model.model_fields[name].annotation)


def _all_keys(schema: Schema) -> Iterator[tuple[str, str]]:
    for name, field in schema.root.model_fields.items():
        yield "", name
        for model in () if name in schema.repeated else models_in(field.annotation):
            for inner in model.model_fields:
                yield name, inner
