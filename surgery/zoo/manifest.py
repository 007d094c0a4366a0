"""The manifest of a zoo: its models, operations, output, verification and limits."""

from __future__ import annotations

import glob
import string
from collections.abc import Iterator, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, ValidationError, field_validator
from pydantic_core import to_jsonable_python

from surgery.errors import UsageError
from surgery.loading.run_options import Dtype, RunOptions
from surgery.operations import OPERATIONS, AnyOperation, OperationOptions
from surgery.schemas import Keys, Problem, Schema, SchemaError, dotted, load_yaml, problems_of, read_text
from surgery.zoo.quantities import Duration, Size

# No system has longer paths, and the time to match a pattern grows with the square of its length.
_LONGEST_PATH = 4096
LAYOUT_FIELDS = ("name", "org", "operations", "revision")


class ManifestError(SchemaError):
    """The manifest is not valid; ``problems`` lists every error (exit code 2)."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class LayersLevel(_Section):
    """Verify the first layers only, so that large models fit on a small machine."""

    layers: PositiveInt = Field(description="Number of layers that are verified, from the first.")


Level = Literal["none", "files", "full"] | LayersLevel


class Limits(_Section):
    """Limits of one item. It is killed when it exceeds time or memory, and not started if it needs more disk."""

    time: Duration | None = Field(default=None, description="Wall time of an item: 90s, 15m, 2h.")
    memory: Size | None = Field(
        default=None, description="Resident memory of all processes of an item: 500 MB, 4 GB, 2 GiB."
    )
    disk: Size | None = Field(default=None, description="Size of an output.")


class Parallel(_Section):
    """How many items run at once: as many as all three bounds allow."""

    items: PositiveInt = Field(default=2, description="Most items at once.")
    memory: Size | None = Field(
        default=None, description="Bound for the sum of their estimated memory; default: the available memory."
    )
    keep_free: Size = Field(default=1_000_000_000, description="Disk space that must stay free.")


class Calibrate(_Section):
    """A calibration of each model on texts, as by ``surgery convert --calibrate``."""

    text: list[Annotated[str, Field(min_length=1, max_length=_LONGEST_PATH)]] = Field(
        min_length=1, description="Files, folders and globs of text, relative to the manifest."
    )
    settings: dict[str, Any] = Field(
        default={}, description="Of the calibration, as the flags of `surgery convert`, such as {lengths: [1024]}."
    )
    device: str = Field(default="auto", description="auto, cpu, cuda, cuda:1, mps ...")
    dtype: Dtype = Field(
        default="auto", description="auto: the checkpoint's; float32 where this processor is slow in that."
    )


class Model(_Section):
    """One entry of ``models``: a folder, a glob of folders, or a hub id."""

    path: str | None = Field(
        default=None, min_length=1, max_length=_LONGEST_PATH, description="Folder or glob, relative to the manifest."
    )
    exclude: list[Annotated[str, Field(min_length=1, max_length=_LONGEST_PATH)]] = Field(
        default=[],
        description="Folders that the glob matches and that are not used: names, or globs relative to the manifest.",
    )
    hub: str | None = Field(default=None, min_length=1, description="Hub id: org/name.")
    revision: str | None = Field(default=None, min_length=1, description="Branch, tag or commit of a hub model.")
    name: str | None = Field(
        default=None, min_length=1, description="Name of the model; default: the name of the folder or the hub model."
    )
    operations: list[AnyOperation] | None = Field(
        default=None, min_length=1, description="Replaces the operations of the manifest."
    )
    change: dict[str, dict[str, Any]] = Field(
        default={}, description="Options that differ for these models, by operation, such as {NAME: {OPTION: VALUE}}."
    )
    calibrate: Calibrate | Literal["none"] | None = Field(
        default=None, description="Replaces calibrate of the manifest; none: these models are not calibrated."
    )
    allow_unverified: bool | None = Field(default=None, description="Replaces allow_unverified of the manifest.")
    verify: Level | None = Field(default=None, description="Replaces the level of the manifest.")
    placement: Literal["auto", "copy", "link"] | None = Field(
        default=None, description="Replaces the placement of the manifest."
    )
    limits: Limits | None = Field(default=None, description="Replaces all limits of the manifest.")


class Manifest(_Section):
    """A whole manifest."""

    models: list[Model] = Field(min_length=1, description="The models.")
    operations: list[AnyOperation] = Field(min_length=1, description="The operations on each model, in order.")
    calibrate: Calibrate | None = Field(
        default=None,
        description="Texts on which the start values of an operation are chosen, for each model; default: no "
        "calibration.",
    )
    output: str = Field(
        min_length=1, max_length=_LONGEST_PATH, description="Folder for all outputs, relative to the manifest."
    )
    layout: str = Field(
        default="{name}-{operations}",
        description="Name of the folder of an output, from {name}, {org}, {operations}, {revision}.",
    )
    placement: Literal["auto", "copy", "link"] = Field(
        default="auto",
        description="How unchanged shards are placed: auto (reflink if possible, else a copy), copy, link (hard link).",
    )
    allow_unverified: bool = Field(
        default=False,
        description="Convert families that are not in the table, by probing their model in transformers; a plan then "
        "needs torch.",
    )
    verify: Level = Field(
        default="files",
        description="none: no verification; files: every byte, without torch; full: also loading, logits and the "
        "meaning of n; layers: N: like full, with the first N layers.",
    )
    limits: Limits = Limits()
    parallel: Parallel = Parallel()
    retries: NonNegativeInt = Field(
        default=1, le=10, description="How often an item is started again after its process was killed from outside."
    )

    @field_validator("layout")
    @classmethod
    def _layout(cls, value: str) -> str:
        try:
            fields = [name for _, name, _, _ in string.Formatter().parse(value) if name is not None]
        except ValueError as error:
            raise ValueError(f"is not a valid layout ({error})") from error
        if unknown := [name for name in fields if name not in LAYOUT_FIELDS]:
            raise ValueError(f"has the unknown field {{{unknown[0]}}}; the fields are {', '.join(LAYOUT_FIELDS)}")
        if "/" in value or "\\" in value:
            raise ValueError("must be the name of one folder, without slashes")
        return value


EXAMPLE = files("surgery.zoo").joinpath("example.yaml").read_text(encoding="utf-8")
_SCHEMA = Schema(
    noun="manifest",
    root=Manifest,
    error=ManifestError,
    example="models: [{path: models/*}]",
    missing_hint="`surgery zoo init` writes a manifest to begin with; `surgery zoo reference` prints every key.",
    repeated=("models", "operations"),
)


def read_manifest(manifest: str | Path | Manifest | Mapping[str, Any]) -> Manifest:
    """Read and validate a manifest: a YAML file, or a value in Python.

    Raises:
        ManifestError: the manifest is not valid; the message lists every error.
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


def json_schema() -> dict[str, Any]:
    """The JSON Schema of a manifest, for editors."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Manifest.model_json_schema()}


def operations_of(manifest: Manifest, model: Model) -> list[OperationOptions]:
    """The operations on the models of an entry: its own, or those of the manifest with its changes.

    Raises:
        pydantic.ValidationError: a changed option is not valid.
    """
    if model.operations is not None:
        return list(model.operations)
    found = []
    for options in manifest.operations:
        change = model.change.get(options.name)
        found.append(options if change is None else type(options).model_validate({**given(options), **change}))
    return found


def calibrate_of(manifest: Manifest, model: Model) -> Calibrate | None:
    """The calibration of the models of an entry."""
    own = manifest.calibrate if model.calibrate is None else model.calibrate
    return own if isinstance(own, Calibrate) else None


def given(options: OperationOptions) -> dict[str, Any]:
    """The options that were set, without defaults, as plain data."""
    plain = {key: getattr(options, key) for key in sorted(options.model_fields_set)}
    return {"name": options.name, **to_jsonable_python(plain)}


def _between_keys(manifest: Manifest, lines: Mapping[Keys, int]) -> list[Problem]:
    """Errors between keys: keys that exclude or need each other, and changed options."""
    found: list[Problem] = []

    def note(path: Keys, message: str) -> None:
        found.append(Problem(dotted(path), _nearest_line(path, lines), message))

    for number, model in enumerate(manifest.models):
        here: Keys = ("models", number)
        if (model.path is None) == (model.hub is None):
            note(here, "must have either path or hub")
        if model.exclude and not (model.path is not None and glob.has_magic(model.path)):
            note((*here, "exclude"), "has no effect without a glob in path")
        if model.revision is not None and model.hub is None:
            note((*here, "revision"), "has no effect without hub")
        if model.change and model.operations is not None:
            note((*here, "change"), "has no effect beside operations, which replace those of the manifest")
            continue
        known = [options.name for options in manifest.operations]
        for name, change in model.change.items():
            where = (*here, "change", name)
            if name not in known:
                note(where, f"is not an operation of the manifest ({', '.join(known)})")
                continue
            base = given(next(options for options in manifest.operations if options.name == name))
            found += _faults_below(where, OPERATIONS[name].options, {**base, **change}, "change", "form: bias", lines)
    found += dict.fromkeys(_calibrations(manifest, lines))  # models that share a calibration share its faults
    for repeated in _repeated([options.name for options in manifest.operations]):
        note(("operations",), f"contains {repeated} twice")
    return found


def _calibrations(manifest: Manifest, lines: Mapping[Keys, int]) -> Iterator[Problem]:
    """Calibrations without an operation that has one, and settings that are not of its calibration."""
    from surgery.conversion.calibration import calibrated_operation

    for number, model in enumerate(manifest.models):
        calibrate = calibrate_of(manifest, model)
        if calibrate is None:
            continue
        here: Keys = ("calibrate",) if model.calibrate is None else ("models", number, "calibrate")
        operations = [{"name": options.name} for options in model.operations or manifest.operations]
        chosen = calibrated_operation(operations)
        if chosen is None:
            names = ", ".join(str(one["name"]) for one in operations)
            message = f"has no effect: {names} of models.{number} has no calibration"
            yield Problem(dotted(here), _nearest_line(here, lines), message)
            continue
        try:
            RunOptions(device=calibrate.device)
        except UsageError as error:
            device: Keys = (*here, "device")
            yield Problem(dotted(device), _nearest_line(device, lines), error.message.removeprefix("--device "))
        root = OPERATIONS[chosen["name"]].calibration_settings
        assert root is not None
        yield from _faults_below((*here, "settings"), root, calibrate.settings, "calibration", "lengths: [1024]", lines)


def _faults_below(
    where: Keys, root: type[BaseModel], data: dict[str, Any], noun: str, example: str, lines: Mapping[Keys, int]
) -> Iterator[Problem]:
    """The errors of the data below a key, by a schema of its own, so that the nearest key is one of that schema's."""
    try:
        root.model_validate(data)
    except ValidationError as error:
        below = {keys[len(where) :]: line for keys, line in lines.items() if keys[: len(where)] == where}
        for problem in problems_of(error, data, below, Schema(noun, root, ManifestError, example, "")):
            line = problem.line or _nearest_line(where, lines)
            yield Problem(f"{dotted(where)}.{problem.path}", line, problem.message)


def _nearest_line(path: Keys, lines: Mapping[Keys, int]) -> int | None:
    """The line of a key, or of the nearest key around it."""
    return next((lines[path[:end]] for end in range(len(path), 0, -1) if path[:end] in lines), None)


def _repeated(names: list[str]) -> list[str]:
    return sorted({name for name in names if names.count(name) > 1})


def plain_level(level: Level) -> str:
    """The level as it is written in a manifest: ``files``, ``full``, ``layers: 2``."""
    return f"layers: {level.layers}" if isinstance(level, LayersLevel) else level
