"""Reading a recipe: YAML with line numbers, overrides, and every fault at once."""

from __future__ import annotations

import io
import json
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.nodes import ScalarNode

from surgery.errors import UsageError
from surgery.recovery.errors import RecipeError
from surgery.recovery.recipe import Recipe
from surgery.schemas import Keys, Problem, Schema, dotted, load_yaml, problems_of, read_text
from surgery.schemas.shipped import shipped_file
from surgery.schemas.yaml_text import MAX_BYTES, SCALARS

ENVIRONMENT = "SURGERY_SET"
_PLACEHOLDER = '"path/to/'
_SCHEMA = Schema(
    noun="recipe",
    root=Recipe,
    error=RecipeError,
    example="model: folder",
    missing_hint="`surgery recipes list` lists the shipped recipes; `surgery recipes copy NAME` copies one.",
    repeated=("stages",),
)


def read_recipe(recipe: str | Path | Recipe | Mapping[str, Any], overrides: Sequence[str] = ()) -> Recipe:
    """Read and validate a recipe.

    Args:
        recipe: a YAML file, the name of a shipped recipe, or a recipe in Python.
        overrides: ``a.b=c`` each, c in YAML; a later one replaces an earlier one, and all replace values of the file.

    Raises:
        RecipeError: it is not a valid recipe; the error lists every fault.
        UsageError: the file cannot be read, or an override is malformed.
    """
    lines: dict[Keys, int] = {}
    problems: list[Problem] = []
    if isinstance(recipe, Recipe):
        name, data = "the recipe", recipe.model_dump(exclude_unset=True)
    elif isinstance(recipe, Mapping):
        name, data = "the recipe", _copy(recipe)
    else:
        name = str(recipe)
        data = load_yaml(_text(recipe), name, lines, problems, _SCHEMA)
    for override in overrides:
        _override(data, override, lines, problems)
    if "budget" not in data and not data.get("stages"):
        problems.append(Problem("budget", None, "missing"))
    try:
        valid = Recipe.model_validate(data)
    except ValidationError as error:
        faults = problems_of(error, data, lines, _SCHEMA)
        problems += [problem for problem in faults if problem not in problems]
    if problems:
        problems.sort(key=lambda problem: (problem.line is None, problem.line or 0))
        raise RecipeError(name, problems, hint="`surgery recipes schema` lists every key.")
    return valid


def _text(recipe: str | Path) -> str:
    """The text of a file, or of the shipped recipe with this name; a folder of the same name is ignored."""
    path = Path(recipe)
    if not path.is_file() and len(path.parts) == 1 and not path.suffix:
        return shipped_file("recipes", str(path)).text
    return read_text(path, _SCHEMA)


def placeholders(recipe: Recipe) -> list[str]:
    """Keys that still have a placeholder ``path/to/...`` of a shipped recipe."""
    content = recipe.model_dump(mode="json", exclude_unset=True)
    return [dotted(path) for path, value in _leaves(content, ()) if _PLACEHOLDER in json.dumps(value)]


def dump_recipe(recipe: Recipe) -> str:
    """The recipe as YAML with all defaults that have an effect; reading it gives the same recipe."""
    yaml = YAML()
    yaml.default_flow_style = False
    stream = io.StringIO()
    content = recipe.model_dump(exclude_none=True)
    content["operations"] = [options.model_dump(mode="json", exclude_none=True) for options in recipe.operations]
    for section, key in recipe.idle_keys():
        del content[section][key]
    if recipe.stages:
        # A key that a stage does not set has the value of the recipe, so defaults are not written.
        content["stages"] = [stage.model_dump(exclude_unset=True, exclude_none=True) for stage in recipe.stages]
    yaml.dump(content, stream)
    return stream.getvalue()


def environment_overrides() -> list[str]:
    """``key=value`` words in the environment variable SURGERY_SET, below ``--set`` and above the file."""
    try:
        return shlex.split(os.environ.get(ENVIRONMENT, ""))
    except ValueError as error:
        raise UsageError(
            f"{ENVIRONMENT}: {error}", hint="Separate key=value words by spaces, and close quotes."
        ) from error


@dataclass(frozen=True)
class Setting:
    """The effective value of a key, and its origin: ``recipe.yaml:3``, ``--set``, ``default``."""

    key: str
    value: Any
    origin: str


def explain_recipe(
    recipe: str | Path | Recipe | Mapping[str, Any], groups: Sequence[tuple[str, Sequence[str]]] = ()
) -> list[Setting]:
    """Every effective value with its origin, defaults too.

    Args:
        recipe: as `read_recipe`.
        groups: overrides by origin; later groups replace earlier ones.

    Raises:
        RecipeError, UsageError: as `read_recipe`.
    """
    valid = read_recipe(recipe, [override for _, overrides in groups for override in overrides])
    lines: dict[Keys, int] = {}
    given: Mapping[str, Any] = {}
    name = "recipe"
    if isinstance(recipe, str | Path):
        name = Path(recipe).name
        given = load_yaml(_text(recipe), name, lines, [], _SCHEMA)
    elif isinstance(recipe, Mapping):
        given = recipe
    else:
        given = recipe.model_dump(exclude_unset=True)
    set_by = [(_numbered(override.partition("=")[0]), origin) for origin, some in groups for override in some]

    def origin_of(path: Keys) -> str:
        for key, origin in reversed(set_by):
            if path[: len(key)] == key:
                return origin
        if path in lines:
            return f"{name}:{lines[path]}"
        return name if _holds(given, path) else "default"

    content = valid.model_dump(mode="json")
    content["stages"] = [stage.model_dump(mode="json", exclude_unset=True) for stage in valid.stages]
    for section, key in valid.idle_keys():
        del content[section][key]
    return [Setting(dotted(path), value, origin_of(path)) for path, value in _leaves(content, ())]


def _numbered(key: str) -> Keys:
    """The path of a dotted key; the items of a list are numbers."""
    return tuple(int(part) if part.isdecimal() else part for part in key.strip().split("."))


def _leaves(value: Any, path: Keys) -> Iterator[tuple[Keys, Any]]:
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _leaves(inner, (*path, key))
    elif isinstance(value, list) and value and all(isinstance(item, Mapping) for item in value):
        for number, item in enumerate(value):
            yield from _leaves(item, (*path, number))
    else:
        yield path, value


def _holds(value: Any, path: Keys) -> bool:
    for part in path:
        try:
            value = value[part]
        except (KeyError, IndexError, TypeError):
            return False
    return True


# ----------------------------------------------------------------------------------------------------- overrides


def _override(data: dict[str, Any], override: str, lines: dict[Keys, int], problems: list[Problem]) -> None:
    key, equals, text = override.partition("=")
    path: Keys = tuple(key.strip().split("."))
    if not equals or "" in path:
        raise UsageError(f"--set {override}: must be key=value", hint="For example --set optimizer.scale_lr=0.02.")
    if len(text) > MAX_BYTES:
        raise UsageError(f"--set {key}: the value is too long")
    found: list[Problem] = []
    # In flow style, so that a text with a colon or a star does not become something else.
    if text.lstrip().startswith(("[", "{")):
        value = load_yaml(f"v: {text}", key, {}, found, _SCHEMA).get("v")
    else:
        value = _scalar(text)
    problems += [Problem(dotted(path), None, problem.message) for problem in found]
    section: Any = data
    for position, part in enumerate(path):
        place = _place(section, str(part), override)
        if position == len(path) - 1:
            section[place] = value
        elif isinstance(section, list):
            section = section[place]
        else:
            if not isinstance(section.get(place), dict | list):
                section[place] = {}
            section = section[place]
    path = _numbered(key)
    for known in [known for known in lines if known[: len(path)] == path]:
        del lines[known]


def _place(section: Any, part: str, override: str) -> Any:
    """A key, or the number of an item that a list has."""
    if not isinstance(section, list):
        return part
    if part.isdecimal() and int(part) < len(section):
        return int(part)
    raise UsageError(
        f"--set {override}: {part!r} is not an item of a list of {len(section)}",
        hint="Items count from 0, as in stages.0.budget.steps=5.",
    )


def _scalar(text: str) -> Any:
    """A number, truth value or null as YAML spells them; anything else is text."""
    yaml = YAML(typ="safe", pure=True)
    try:
        node = yaml.compose(text.strip())
        if isinstance(node, ScalarNode) and str(node.tag) in SCALARS:
            return yaml.constructor.construct_object(node)
    except YAMLError:
        pass
    return text


def _copy(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _copy(inner) for key, inner in value.items()}
    return [_copy(inner) for inner in value] if isinstance(value, list | tuple) else value
