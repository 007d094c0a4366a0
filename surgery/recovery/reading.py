"""Reading a recipe: YAML with line numbers, overrides, and every fault at once."""

from __future__ import annotations

import io
import math
import os
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from rapidfuzz import process
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from surgery.errors import UsageError
from surgery.recovery.errors import Problem, RecipeError
from surgery.recovery.recipe import Recipe
from surgery.recovery.unions import TAGS, models_in

ENVIRONMENT = "SURGERY_SET"
MAX_BYTES = 256 * 1024
_MOST_NODES = 5000
_DEEPEST = 12
_SCALARS = frozenset(f"tag:yaml.org,2002:{kind}" for kind in ("null", "bool", "int", "float", "str"))
_TIMESTAMP = "tag:yaml.org,2002:timestamp"
_ALLOWED = _SCALARS | {"tag:yaml.org,2002:map", "tag:yaml.org,2002:seq", _TIMESTAMP}
_MERGE = "tag:yaml.org,2002:merge"

Path_ = tuple[str | int, ...]


def read_recipe(recipe: str | Path | Recipe | Mapping[str, Any], overrides: Sequence[str] = ()) -> Recipe:
    """Read and validate a recipe.

    Args:
        recipe: a YAML file, or a recipe already in Python.
        overrides: ``a.b=c`` each, c in YAML; later ones win, and all of them win over the file.

    Raises:
        RecipeError: it is not a valid recipe; the error lists every fault.
        UsageError: the file cannot be read, or an override is malformed.
    """
    lines: dict[Path_, int] = {}
    problems: list[Problem] = []
    if isinstance(recipe, Recipe):
        name, data = "the recipe", recipe.model_dump(exclude_unset=True)
    elif isinstance(recipe, Mapping):
        name, data = "the recipe", _copy(recipe)
    else:
        name = str(recipe)
        data = _load(_read_text(Path(recipe)), name, lines, problems)
    for override in overrides:
        _override(data, override, lines, problems)
    if "budget" not in data and not data.get("stages"):
        problems.append(Problem("budget", None, "missing"))
    try:
        valid = Recipe.model_validate(data)
    except ValidationError as error:
        faults = _merged(_problem(fault, data, lines) for fault in error.errors(include_url=False))
        problems += [problem for problem in faults if problem not in problems]
    if problems:
        problems.sort(key=lambda problem: (problem.line is None, problem.line or 0))
        raise RecipeError(name, problems, hint="`surgery recipes schema` has every key.")
    return valid


def dump_recipe(recipe: Recipe) -> str:
    """The recipe as YAML, with every default that has an effect written out; reads back as the same recipe."""
    yaml = YAML()
    yaml.default_flow_style = False
    stream = io.StringIO()
    content = recipe.model_dump(exclude_none=True)
    for section, key in recipe.idle_keys():
        del content[section][key]
    if recipe.stages:
        # What a stage leaves unsaid is as in the recipe, so its defaults are no defaults.
        content["stages"] = [stage.model_dump(exclude_unset=True, exclude_none=True) for stage in recipe.stages]
    yaml.dump(content, stream)
    return stream.getvalue()


def environment_overrides() -> list[str]:
    """``key=value`` words in the environment variable SURGERY_SET, below ``--set`` and above the file."""
    try:
        return shlex.split(os.environ.get(ENVIRONMENT, ""))
    except ValueError as error:
        raise UsageError(
            f"{ENVIRONMENT}: {error}.", hint="Separate key=value words by spaces, and close quotes."
        ) from error


@dataclass(frozen=True)
class Setting:
    """One value of a recipe as it is in force, and where it comes from: ``recipe.yaml:3``, ``--set``, ``default``."""

    key: str
    value: Any
    origin: str


def explain_recipe(
    recipe: str | Path | Recipe | Mapping[str, Any], groups: Sequence[tuple[str, Sequence[str]]] = ()
) -> list[Setting]:
    """Every value that is in force, defaults among them, each with where it comes from.

    Args:
        recipe: as `read_recipe`.
        groups: overrides by where they come from, later ones winning.

    Raises:
        RecipeError, UsageError: as `read_recipe`.
    """
    valid = read_recipe(recipe, [override for _, overrides in groups for override in overrides])
    lines: dict[Path_, int] = {}
    given: Mapping[str, Any] = {}
    name = "recipe"
    if isinstance(recipe, str | Path):
        name = Path(recipe).name
        given = _load(_read_text(Path(recipe)), name, lines, [])
    elif isinstance(recipe, Mapping):
        given = recipe
    else:
        given = recipe.model_dump(exclude_unset=True)
    set_by = [(_numbered(override.partition("=")[0]), origin) for origin, some in groups for override in some]

    def origin_of(path: Path_) -> str:
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
    return [Setting(_dotted(path), value, origin_of(path)) for path, value in _leaves(content, ())]


def _numbered(key: str) -> Path_:
    """The path of a dotted key; the items of a list are numbers."""
    return tuple(int(part) if part.isdecimal() else part for part in key.strip().split("."))


def _leaves(value: Any, path: Path_) -> Iterator[tuple[Path_, Any]]:
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _leaves(inner, (*path, key))
    elif isinstance(value, list) and value and all(isinstance(item, Mapping) for item in value):
        for number, item in enumerate(value):
            yield from _leaves(item, (*path, number))
    else:
        yield path, value


def _holds(value: Any, path: Path_) -> bool:
    for part in path:
        try:
            value = value[part]
        except (KeyError, IndexError, TypeError):
            return False
    return True


# ---------------------------------------------------------------------------------------------------------- YAML


def _read_text(path: Path) -> str:
    try:
        if not path.is_file():
            raise UsageError(
                f"There is no recipe file {str(path)!r}.",
                hint="`surgery recipes list` names those that ship; `surgery recipes copy NAME` makes one your own.",
            )
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise UsageError(f"{path} is larger than {MAX_BYTES:,} bytes, which no recipe is.")
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 text (byte {error.start}).") from error
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}.") from error


def _load(text: str, name: str, lines: dict[Path_, int], problems: list[Problem]) -> dict[str, Any]:
    """Plain values from YAML; notes the line of each key, and duplicate keys and the like as problems."""
    yaml = YAML(typ="safe", pure=True)
    try:
        root = yaml.compose(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        message = error.problem or error.context or "not YAML"
        raise RecipeError(name, [Problem("", mark.line + 1 if mark else None, f"not YAML: {message}")]) from error
    except (YAMLError, ValueError, RecursionError) as error:
        raise RecipeError(name, [Problem("", None, f"not YAML: {str(error).splitlines()[0]}")]) from error
    if not isinstance(root, MappingNode):
        raise RecipeError(name, [Problem("", 1, "must hold keys and values, such as `model: folder`")])
    return _Plain(yaml, lines, problems).mapping(root, ())


class _Plain:
    """Turns YAML nodes into plain values, within bounds: an alias of an alias of an alias can grow without end."""

    def __init__(self, yaml: YAML, lines: dict[Path_, int], problems: list[Problem]) -> None:
        self._yaml, self._lines, self._problems = yaml, lines, problems
        self._nodes = 0

    def mapping(self, node: MappingNode, path: Path_) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, ScalarNode) or str(key_node.tag) == _MERGE:
                self._note(path, line, "keys must be plain words")
                continue
            key = key_node.value
            where = (*path, key)
            if key in result:
                self._note(where, line, f"given twice, first on line {self._lines[where]}")
                continue
            self._lines[where] = line
            result[key] = self.value(value_node, where)
        return result

    def value(self, node: Node, path: Path_) -> Any:
        self._nodes += 1
        line = node.start_mark.line + 1
        if self._nodes > _MOST_NODES or len(path) > _DEEPEST:
            raise RecipeError("The recipe", [Problem(_dotted(path), line, "too many or too deeply nested values")])
        if str(node.tag) not in _ALLOWED:
            self._note(path, line, f"the tag {str(node.tag).rpartition(',2002:')[2]!r} is not allowed in a recipe")
            return None
        if isinstance(node, MappingNode):
            return self.mapping(node, path)
        if isinstance(node, SequenceNode):
            for position, child in enumerate(node.value):
                self._lines[(*path, position)] = child.start_mark.line + 1
            return [self.value(child, (*path, position)) for position, child in enumerate(node.value)]
        if str(node.tag) == _TIMESTAMP:  # recipes have no dates, but may have texts that look like one
            return node.value
        try:
            return self._yaml.constructor.construct_object(node)
        except (YAMLError, ValueError) as error:
            self._note(path, line, f"cannot be read: {str(error).splitlines()[0]}")
            return None

    def _note(self, path: Path_, line: int, message: str) -> None:
        self._problems.append(Problem(_dotted(path), line, message))


# ----------------------------------------------------------------------------------------------------- overrides


def _override(data: dict[str, Any], override: str, lines: dict[Path_, int], problems: list[Problem]) -> None:
    key, equals, text = override.partition("=")
    path: Path_ = tuple(key.strip().split("."))
    if not equals or "" in path:
        raise UsageError(f"--set {override}: must be key=value.", hint="For example --set optimizer.scale_lr=0.02.")
    if len(text) > MAX_BYTES:
        raise UsageError(f"--set {key}: the value is too long.")
    found: list[Problem] = []
    # In flow style, so that a text with a colon or a star does not become something else.
    value = _scalar(text) if not text.lstrip().startswith(("[", "{")) else _load(f"v: {text}", key, {}, found).get("v")
    problems += [Problem(_dotted(path), None, problem.message) for problem in found]
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
        f"--set {override}: {part!r} is no item of a list of {len(section)}.",
        hint="Items count from 0, as in stages.0.budget.steps=5.",
    )


def _scalar(text: str) -> Any:
    """A number, truth value or null as YAML spells them; anything else is text."""
    yaml = YAML(typ="safe", pure=True)
    try:
        node = yaml.compose(text.strip())
        if isinstance(node, ScalarNode) and str(node.tag) in _SCALARS:
            return yaml.constructor.construct_object(node)
    except YAMLError:
        pass
    return text


# -------------------------------------------------------------------------------------------------------- faults


def _merged(problems: Iterable[Problem]) -> list[Problem]:
    """One problem for each key: a key that may hold one of two kinds has a fault for each kind."""
    messages: dict[tuple[str, int | None], list[str]] = {}
    for problem in problems:
        messages.setdefault((problem.path, problem.line), []).append(problem.message)
    return [Problem(path, line, ", or ".join(dict.fromkeys(found))) for (path, line), found in messages.items()]


def _problem(fault: Any, data: dict[str, Any], lines: dict[Path_, int]) -> Problem:
    path = _in_data(fault["loc"], data, missing=fault["type"] == "missing")
    if fault["type"] == "missing_key":
        path = (*path, fault["ctx"]["key"])
    line = next((lines[path[:end]] for end in range(len(path), 0, -1) if path[:end] in lines), None)
    if path and path not in lines and fault["type"] == "extra_forbidden":
        line = None  # from --set
    return Problem(_dotted(path), line, _message(fault, path))


def _in_data(location: Path_, data: Any, *, missing: bool) -> Path_:
    """Pydantic's location without the names of union members, which are no keys."""
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


def _message(fault: Any, path: Path_) -> str:
    kind = fault["type"]
    if kind == "extra_forbidden":
        return _unknown_key(path, fault["loc"])
    if kind in ("missing", "missing_key"):
        return "missing"
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        tags = fault["ctx"].get("expected_tags") or ""
        return f"must say {fault['ctx']['discriminator']}{f', one of {tags}' if tags else ''}"
    message = fault["msg"].removeprefix("Value error, ")
    given = fault.get("input")
    if isinstance(given, dict | BaseModel) or given is None:
        return message
    if isinstance(given, float) and not math.isfinite(given):
        given = str(given)
    return f"{message[0].lower()}{message[1:]}, not {given!r}"


def _unknown_key(path: Path_, location: Path_) -> str:
    key = str(path[-1])
    siblings = list(_model_at(location[:-1]).model_fields)
    close = process.extractOne(key, siblings, score_cutoff=70)
    if close is not None:
        return f"unknown key; did you mean `{close[0]}`?"
    others = [
        f"{tag_key}: {tag}" for member, tag_key, tag in _members_beside(location[:-1]) if key in member.model_fields
    ]
    if others:
        return f"does nothing here; only with `{' or '.join(others)}`"
    homes = [home for home, name in _all_keys() if name == key and home]
    if homes:
        return f"unknown key here; it belongs under {' or '.join(f'`{home}`' for home in dict.fromkeys(homes))}"
    if key in Recipe.model_fields:
        return "unknown key here; it belongs at the top level"
    everywhere = {name: f"{home}.{name}" if home else name for home, name in _all_keys()}
    far = process.extractOne(key, list(everywhere), score_cutoff=75)
    if far is not None:
        return f"unknown key; did you mean `{everywhere[far[0]]}`?"
    return f"unknown key; valid here: {', '.join(siblings)}"


def _members_beside(location: Path_) -> Iterator[tuple[type[BaseModel], str, str]]:
    """The members of the union at a location, each with its discriminator and tag."""
    model: type[BaseModel] = Recipe
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


def _model_at(location: Path_) -> type[BaseModel]:
    model: type[BaseModel] = Recipe
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


def _all_keys() -> Iterator[tuple[str, str]]:
    for name, field in Recipe.model_fields.items():
        yield "", name
        for model in () if name == "stages" else models_in(field.annotation):
            for inner in model.model_fields:
                yield name, inner


def _dotted(path: Path_) -> str:
    return ".".join(str(part) for part in path)


def _copy(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _copy(inner) for key, inner in value.items()}
    return [_copy(inner) for inner in value] if isinstance(value, list | tuple) else value
