"""What a manifest can say: which models, which operations, where to, how far to check, within which limits."""

from __future__ import annotations

import glob
import string
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, ValidationError, field_validator
from pydantic_core import to_jsonable_python

from surgery.operations import OPERATIONS, AnyOperation, OperationOptions
from surgery.schemas import Keys, Problem, Schema, SchemaError, dotted, load_yaml, problems_of, read_text
from surgery.zoo.quantities import Duration, Size

# No system takes a longer one, and the time that Python takes to read a pattern grows with its square.
_LONGEST_PATH = 4096
LAYOUT_FIELDS = ("name", "org", "operations", "revision")


class ManifestError(SchemaError):
    """A manifest is not valid; ``problems`` has every fault that was found (exit code 2)."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class LayersLevel(_Section):
    """Verify with the first so many layers only, so that big models fit a small machine."""

    layers: PositiveInt = Field(description="How many layers are run.")


Level = Literal["none", "files", "full"] | LayersLevel


class Limits(_Section):
    """What one item may take. Past its time or memory it is killed; what needs more disk is not begun."""

    time: Duration | None = Field(default=None, description="Wall time of one item: 90s, 15m, 2h.")
    memory: Size | None = Field(
        default=None, description="Resident memory of an item's processes, added up: 500 MB, 4 GB, 2 GiB."
    )
    disk: Size | None = Field(default=None, description="Bytes that one output may take.")


class Parallel(_Section):
    """How many items run at once: as many as all three bounds allow."""

    items: PositiveInt = Field(default=2, description="At most so many at once.")
    memory: Size | None = Field(
        default=None, description="What their estimates may add up to; by default what the machine has available."
    )
    keep_free: Size = Field(default=1_000_000_000, description="Disk space that must stay free.")


class Model(_Section):
    """One entry of ``models``: a folder, several by a glob, or a hub id."""

    path: str | None = Field(
        default=None, min_length=1, max_length=_LONGEST_PATH, description="Folder or glob, seen from the manifest."
    )
    exclude: list[Annotated[str, Field(min_length=1, max_length=_LONGEST_PATH)]] = Field(
        default=[],
        description="Folders that the glob matches and that are left out: names, or globs seen from the manifest.",
    )
    hub: str | None = Field(default=None, min_length=1, description="Hub id, org/name.")
    revision: str | None = Field(default=None, min_length=1, description="Branch, tag or commit; with hub.")
    name: str | None = Field(default=None, min_length=1, description="In place of the folder's or hub model's name.")
    operations: list[AnyOperation] | None = Field(
        default=None, min_length=1, description="In place of the manifest's operations."
    )
    change: dict[str, dict[str, Any]] = Field(
        default={}, description="Options that differ for these models, by operation: {ssmax: {form: bias}}."
    )
    allow_unverified: bool | None = Field(default=None, description="In place of the manifest's.")
    verify: Level | None = Field(default=None, description="In place of the manifest's level.")
    placement: Literal["auto", "copy", "link"] | None = Field(default=None, description="In place of the manifest's.")
    limits: Limits | None = Field(default=None, description="In place of the manifest's limits, all of them.")


class Manifest(_Section):
    """A whole manifest."""

    models: list[Model] = Field(min_length=1, description="Which models.")
    operations: list[AnyOperation] = Field(min_length=1, description="What is done to each, in order.")
    output: str = Field(
        min_length=1, max_length=_LONGEST_PATH, description="Folder for all outputs, seen from the manifest."
    )
    layout: str = Field(
        default="{name}-{operations}",
        description="Name of each output's folder, of {name}, {org}, {operations}, {revision}.",
    )
    placement: Literal["auto", "copy", "link"] = Field(
        default="auto", description="Unchanged shards: reflink where possible, else copied; always copied; hard links."
    )
    allow_unverified: bool = Field(
        default=False,
        description="Of a family that is not in the table, go on by what its model in transformers shows; a plan then "
        "needs torch.",
    )
    verify: Level = Field(
        default="files",
        description="none; files: every byte, no torch; full: also loading, logits and the meaning of n; "
        "layers: n: full with the first n layers.",
    )
    limits: Limits = Limits()
    parallel: Parallel = Parallel()
    retries: NonNegativeInt = Field(
        default=1, le=10, description="How often an item is begun again whose process was killed from outside."
    )

    @field_validator("layout")
    @classmethod
    def _layout(cls, value: str) -> str:
        try:
            fields = [name for _, name, _, _ in string.Formatter().parse(value) if name is not None]
        except ValueError as error:
            raise ValueError(f"is no layout ({error})") from error
        if unknown := [name for name in fields if name not in LAYOUT_FIELDS]:
            raise ValueError(f"knows no {{{unknown[0]}}}; there are {', '.join(LAYOUT_FIELDS)}")
        if "/" in value or "\\" in value:
            raise ValueError("names one folder, without slashes")
        return value


EXAMPLE = """\
models:
  - path: models/*                      # folder or glob, relative to the manifest
    exclude: [old-*]                    # names or globs to leave out
    placement: link
  - path: models/SmolLM2-135M-Instruct
    name: SmolLM2-bias                  # in place of the folder's name
    change: {ssmax: {form: bias}}       # options that differ for these models
    verify: {layers: 2}
operations:
  - {name: ssmax}
output: converted
limits: {time: 30m, memory: 6 GB}
"""
_SCHEMA = Schema(
    noun="manifest",
    root=Manifest,
    error=ManifestError,
    example="models: [{path: models/*}]",
    finding="`surgery zoo reference` prints a manifest to begin with, and every key.",
    repeated=("models", "operations"),
)


def read_manifest(manifest: str | Path | Manifest | Mapping[str, Any]) -> Manifest:
    """Read and validate a manifest, a YAML file or a value in Python.

    Raises:
        ManifestError: it is not a valid manifest; the error lists every fault.
        UsageError: the file cannot be read.
    """
    if isinstance(manifest, Manifest):
        return manifest
    lines: dict[Keys, int] = {}
    problems: list[Problem] = []
    if isinstance(manifest, Mapping):
        name, data = "the manifest", dict(manifest)
    else:
        name = str(manifest)
        data = load_yaml(read_text(Path(manifest), _SCHEMA), name, lines, problems, _SCHEMA)
    valid = None
    try:
        valid = Manifest.model_validate(data)
    except ValidationError as error:
        problems += [problem for problem in problems_of(error, data, lines, _SCHEMA) if problem not in problems]
    if valid is not None:
        problems += _between_keys(valid, lines)
    if problems or valid is None:
        problems.sort(key=lambda problem: (problem.line is None, problem.line or 0))
        raise ManifestError(name, problems, hint="`surgery zoo reference` prints every key.")
    return valid


def operations_of(manifest: Manifest, model: Model) -> list[OperationOptions]:
    """The operations on one entry's models: the entry's own, or the manifest's with what the entry changes.

    Raises:
        pydantic.ValidationError: a changed option is wrong.
    """
    if model.operations is not None:
        return list(model.operations)
    found = []
    for options in manifest.operations:
        change = model.change.get(options.name)
        found.append(options if change is None else type(options).model_validate({**given(options), **change}))
    return found


def given(options: OperationOptions) -> dict[str, Any]:
    """Options as they were written, defaults left out, as plain data."""
    plain = {key: getattr(options, key) for key in sorted(options.model_fields_set)}
    return {"name": options.name, **to_jsonable_python(plain)}


def _between_keys(manifest: Manifest, lines: Mapping[Keys, int]) -> list[Problem]:
    """What single keys cannot show: keys that exclude or need each other, and changes of options."""
    found: list[Problem] = []

    def note(path: Keys, message: str) -> None:
        line = next((lines[path[:end]] for end in range(len(path), 0, -1) if path[:end] in lines), None)
        found.append(Problem(dotted(path), line, message))

    for number, model in enumerate(manifest.models):
        here: Keys = ("models", number)
        if (model.path is None) == (model.hub is None):
            note(here, "must have exactly one of path and hub")
        if model.exclude and not (model.path is not None and glob.has_magic(model.path)):
            note((*here, "exclude"), "does nothing without a glob in path")
        if model.revision is not None and model.hub is None:
            note((*here, "revision"), "does nothing without hub")
        if model.change and model.operations is not None:
            note((*here, "change"), "does nothing beside operations, which are in place of the manifest's")
            continue
        known = [options.name for options in manifest.operations]
        for name, change in model.change.items():
            where = (*here, "change", name)
            if name not in known:
                note(where, f"is none of the manifest's operations ({', '.join(known)})")
                continue
            base = given(next(options for options in manifest.operations if options.name == name))
            root = OPERATIONS[name].options
            try:
                root.model_validate({**base, **change})
            except ValidationError as error:
                # Seen from the operation's own schema, so that the nearest key is one of its options.
                own = {keys[4:]: line for keys, line in lines.items() if keys[:4] == where}
                schema = Schema("change", root, ManifestError, "form: bias", "")
                for problem in problems_of(error, {**base, **change}, own, schema):
                    line = problem.line or lines.get(where)
                    found.append(Problem(f"{dotted(where)}.{problem.path}", line, problem.message))
    for repeated in _repeated([options.name for options in manifest.operations]):
        note(("operations",), f"has {repeated} twice")
    return found


def _repeated(names: list[str]) -> list[str]:
    return sorted({name for name in names if names.count(name) > 1})


def plain_level(level: Level) -> str:
    """``files``, ``full``, ``layers: 2``: as it stands in a manifest."""
    return f"layers: {level.layers}" if isinstance(level, LayersLevel) else level
