"""The plan of a conversion: which layers, which tensors, which files, which bytes, which warnings. Nothing is written.

The same source and options give the same plan, to the byte: it holds no time and no absolute path.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from surgery.anatomy import Anatomy, read_anatomy
from surgery.anatomy.anatomy import MODEL_TYPE_PREFIX
from surgery.checkpoint import Checkpoint, Source, open_checkpoint, quote, resolve, sha256_json
from surgery.checkpoint.record import FORMAT_VERSION, NEW_NAME, PLAN_NAME, RECORD_FOLDER
from surgery.checkpoint.tokenizer_code import tokenizer_code
from surgery.conversion.completeness import check_complete
from surgery.conversion.config import kept_auto_map
from surgery.conversion.options import fill_from_calibration, named_by_number, parse_operation
from surgery.errors import CheckpointError, PlanRefusedError, UsageError
from surgery.operations import OPERATIONS, OperationOptions, PlannedTensor
from surgery.operations.calibration_record import CalibrationRecord
from surgery.operations.code import code_hashes, is_code_name, travelling_code
from surgery.operations.family_table import caveats
from surgery.operations.inspection import converted_already, unverified_family
from surgery.version import __version__

if TYPE_CHECKING:
    pass

NEW_SHARD = "surgery-operations.safetensors"
CARD_NAME = "README.md"
# transformers' save_pretrained writes, and deletes, files that begin with "model": under this prefix a later save into
# the converted folder can never write through a hard link into the source.
SHARD_PREFIX = "source-"


@dataclass(frozen=True)
class Plan:
    """What a conversion will do.

    Attributes:
        format_version: of the converted checkpoint.
        tool_version: of this package.
        source: name, hub id, commit, model type and architecture of the source; and the operations that it had already.
        model_type, architecture: of the output.
        attention: path of a layer's attention module below the base model, with ``{layer}``.
        operations: resolved options of every operation, in the order in which they are applied.
        identity: for each operation, where the output starts as exactly the source, or None.
        config: value of each key of the family's own config.json that the operations change; None removes a key.
        tensors: the new tensors.
        shards: name of each source shard in the output.
        kept_files: files copied byte for byte under their own name.
        source_record: the record of the source's own conversion, kept below this one's.
        code: SHA-256 of each file of code that travels in the output.
        skipped_layers: reason for each layer on which no operation is performed.
        bytes: of the source's tensors, of the new tensors, and of everything that is placed.
        warnings: what a user should know before this is done.
    """

    format_version: int
    tool_version: str
    source: Mapping[str, Any]
    model_type: str
    architecture: str
    attention: str
    operations: tuple[Mapping[str, Any], ...]
    identity: tuple[str | None, ...]
    tensors: tuple[PlannedTensor, ...]
    shards: Mapping[str, str]
    kept_files: tuple[str, ...]
    skipped_layers: Mapping[str, str]
    bytes: Mapping[str, int]
    warnings: tuple[str, ...]
    config: Mapping[str, Any] = field(default_factory=dict)
    source_record: tuple[str, ...] = ()
    code: Mapping[str, str] = field(default_factory=dict)

    @property
    def has_code(self) -> bool:
        """Whether modelling code travels in the output; if not, the family's own class runs it."""
        return self.model_type.startswith(MODEL_TYPE_PREFIX)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, with the hash of everything else under ``hash``."""
        content = asdict(self)
        return {**content, "hash": sha256_json(content)}

    @property
    def hash(self) -> str:
        """SHA-256 of the plan's content."""
        return str(self.to_dict()["hash"])


@dataclass(frozen=True)
class PreparedPlan:
    """A plan and what it was made from, ready to be executed."""

    plan: Plan
    source: Source
    checkpoint: Checkpoint
    anatomy: Anatomy
    calibration: CalibrationRecord | None = None


def make_plan(
    model: str | Path,
    operations: Sequence[Mapping[str, Any] | OperationOptions],
    *,
    revision: str | None = None,
    calibration: CalibrationRecord | None = None,
    allow_unverified: bool = False,
) -> PreparedPlan:
    """Plan a conversion from headers and config.json; no weight is read and nothing is written.

    Args:
        model: folder or hub id.
        operations: options of each operation, in order; each names itself under ``name``.
        revision: branch, tag or commit of a hub model.
        calibration: start values of an operation that calibrates.
        allow_unverified: go on with a family that the table does not have, by what a probe of transformers' model
            shows; imports torch.

    Raises:
        CheckpointError: the source is missing, broken or hostile.
        UsageError: an option is wrong.
        PlanRefusedError: the operation cannot be applied, or there is nothing to do.
    """
    source = resolve(model, revision)
    checkpoint = open_checkpoint(source)
    anatomy = read_anatomy(checkpoint, family=unverified_family(checkpoint) if allow_unverified else None)
    _check_source(checkpoint, anatomy)
    before = (*anatomy.source_operations, *anatomy.operations)
    resolved: list[OperationOptions] = []
    tensors: list[PlannedTensor] = []
    identity: list[str | None] = []
    warnings: list[str] = []
    skipped: dict[str, str] = {}
    changes: dict[str, Any] = {}
    has_code = False
    filled = operations if calibration is None else fill_from_calibration(operations, calibration)
    for asked, given in zip(operations, filled, strict=True):
        options = parse_operation(given)
        operation = OPERATIONS[options.name]
        if any(other.name == options.name for other in resolved):
            raise UsageError(f"the operation {options.name!r} is given twice")
        operation.check_family(anatomy.family)
        if any(other.get("name") == options.name for other in before):
            raise PlanRefusedError(
                f"this checkpoint already has {options.name}",
                hint="`surgery revert` restores the source; convert that.",
            )
        options = operation.resolve(options, anatomy)
        has_code = has_code or not operation.in_config_alone
        own_changes = operation.config_changes(options, anatomy)
        if both := sorted(own_changes.keys() & changes.keys()):
            others = ", ".join(other.name for other in resolved)
            raise PlanRefusedError(f"{options.name} and {others} both change {both[0]} of config.json")
        changes |= own_changes
        for other in resolved:
            before_it = OPERATIONS[other.name]
            reason = operation.conflict(options, before_it, other) or before_it.conflict(other, operation, options)
            if reason:
                raise PlanRefusedError(f"{options.name} and {other.name}: {reason}", hint="Give them different layers.")
        resolved.append(options)
        tensors += operation.tensors(options, anatomy)
        identity.append(operation.identity(options))
        warnings += operation.warnings(options, anatomy)
        for layer in anatomy.layers:
            if layer.index not in options.layers:
                # Among numbers another layer of the same kind may stand: then its kind is not the reason.
                possible = named_by_number(asked) and operation.option_to_include(layer, anatomy) is not None
                reason = None if possible else operation.reason_to_skip(layer, anatomy)
                skipped[f"{options.name}:{layer.index}"] = reason or "not chosen"
    if not resolved:
        raise UsageError("no operation was given", hint=f"Choose one of: {', '.join(OPERATIONS)}.")
    warnings += (*caveats(anatomy.family), *_source_warnings(checkpoint))
    family = anatomy.family
    new_bytes = sum(4 * size for tensor in tensors for size in tensor.shape)
    plan = Plan(
        format_version=FORMAT_VERSION,
        tool_version=__version__,
        source={
            "name": source.name,
            "hub_id": source.hub_id,
            "commit": source.commit,
            "model_type": family.model_type,
            "architecture": family.architecture,
            "operations": [dict(options) for options in before],
        },
        model_type=MODEL_TYPE_PREFIX + family.model_type if has_code else family.model_type,
        architecture=f"Surgery{family.architecture}" if has_code else family.architecture,
        attention=family.attention,
        operations=tuple(options.resolved() for options in resolved),
        identity=tuple(identity),
        tensors=tuple(tensors),
        shards={shard: SHARD_PREFIX + shard for shard in checkpoint.shards},
        kept_files=tuple(name for name in checkpoint.other_files if name != CARD_NAME and not _in_record(name)),
        skipped_layers=skipped,
        bytes={"source_tensors": checkpoint.total_bytes, "new_tensors": new_bytes, "placed": checkpoint.disk_bytes},
        warnings=tuple(warnings),
        config=changes,
        source_record=tuple(filter(_in_record, checkpoint.other_files)),
        code=code_hashes(travelling_code(options.name for options in resolved)) if has_code else {},
    )
    return PreparedPlan(plan, source, checkpoint, anatomy, calibration)


def _in_record(name: str) -> bool:
    return name.startswith(f"{RECORD_FOLDER}/")


def _check_source(checkpoint: Checkpoint, anatomy: Anatomy) -> None:
    if reason := converted_already(anatomy):
        raise PlanRefusedError(
            f"this checkpoint was {reason}",
            hint="`surgery revert` restores the source; convert that."
            if PLAN_NAME in checkpoint.other_files
            else "Another program saved it. Convert its source instead.",
        )
    done = bool(anatomy.operations)
    is_new = NEW_NAME in checkpoint.other_files  # its record is kept below the record of the conversion
    taken = [
        name
        for name in (*checkpoint.other_files, *checkpoint.shards)
        if name == NEW_SHARD
        or is_code_name(name)
        or (not done and not is_new and _in_record(name))
        or (not done and name.startswith(SHARD_PREFIX) and name.endswith(".safetensors"))
    ]
    if taken:
        raise PlanRefusedError(f"the source holds {taken[0]!r}, a name that a converted checkpoint uses itself")
    expected = anatomy.family.architecture
    architectures = checkpoint.config.get("architectures")
    if architectures is not None and not (isinstance(architectures, list) and expected in architectures):
        raise PlanRefusedError(
            f"config.json: architectures is {architectures!r}; only {expected} (a causal language model) is converted"
        )
    if any(f".{operation}." in name for operation in OPERATIONS for name in checkpoint.tensors):
        raise CheckpointError("the tensors hold names of an operation, but config.json names no operation")
    check_complete(checkpoint, anatomy)


def _source_warnings(checkpoint: Checkpoint) -> list[str]:
    found = []
    if len(kept_auto_map(checkpoint.config)) < len(checkpoint.config.get("auto_map") or {}):
        found.append("the source's own modelling code is not used: the output is built on transformers' class")
    code = tokenizer_code(checkpoint.folder)
    if code is not None and code not in checkpoint.other_files:
        found.append(f"the tokenizer may need code of its own, {quote(code)}, which the folder does not have")
    if checkpoint.skipped:
        found.append(f"hidden folders are left out: {', '.join(map(quote, checkpoint.skipped))}")
    return found


def needed_bytes(prepared: PreparedPlan, mode: str) -> int:
    """Upper bound on the disk space that the execution needs; linked shards need none."""
    sizes = prepared.checkpoint.file_sizes
    placed = 0 if mode == "link" else sum(sizes[shard] for shard in prepared.checkpoint.shards)
    small = sum(size for name, size in sizes.items() if name not in prepared.checkpoint.shards)
    return placed + 2 * small + prepared.plan.bytes["new_tensors"] + 4_000_000
