"""Execute a plan: write a staged folder beside the output, then rename it. A kill leaves no output or a whole one."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from surgery.checkpoint import (
    CONFIG_NAME,
    INDEX_NAME,
    BackgroundHasher,
    NewTensor,
    StagedFolder,
    absolute_path,
    place_file,
    require_space,
    write_index,
    write_json,
    write_safetensors,
)
from surgery.checkpoint.hub_cache import content_hash
from surgery.checkpoint.record import CALIBRATION_NAME, PLAN_NAME, SHARDS_NAME
from surgery.conversion.calibration import read_calibration
from surgery.conversion.card import describe, summarize_numbers, write_card
from surgery.conversion.config import converted_config
from surgery.conversion.plan import (
    CARD_NAME,
    NEW_SHARD,
    RECORD_FOLDER,
    Plan,
    PreparedPlan,
    make_plan,
    needed_bytes,
)
from surgery.errors import CheckpointError, PlanRefusedError, UsageError
from surgery.operations import DEFAULT_OPERATION, OPERATIONS, OperationOptions
from surgery.operations.code import travelling_code
from surgery.result_table import ResultTable, ShownAsTable

if TYPE_CHECKING:
    from surgery.operations.calibration_record import CalibrationRecord

PlaceMode = Literal["auto", "copy", "link"]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class ConversionResult(ShownAsTable):
    """The plan, the output folder, and how each shard was placed there (reflink, copied or linked)."""

    plan: Plan
    output: Path
    placed: Mapping[str, str]

    def to_table(self) -> ResultTable:
        """One row for each operation."""
        plan = self.plan
        rows = tuple(
            (options["name"], describe(options), summarize_numbers(options["layers"]), identity or "a changed model")
            for options, identity in zip(plan.operations, plan.identity, strict=True)
        )
        numbers = f"{plan.bytes['new_tensors'] // 4:,} new numbers; every tensor of the source byte for byte"
        columns = ("operation", "options", "layers", "starts as the source")
        return ResultTable(f"{plan.source['name']} as {self.output}", columns, rows, (numbers, *plan.warnings))

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {"output": str(self.output), "placed": dict(self.placed), "plan": self.plan.to_dict()}


def adding_up(on_bytes: Progress | None, total: int) -> Callable[[int], None]:
    """A function that takes the bytes of each piece and reports the bytes of all pieces so far."""
    done = 0

    def report(count: int) -> None:
        nonlocal done
        done += count
        if on_bytes is not None:
            on_bytes(done, total)

    return report


def default_output(prepared: PreparedPlan) -> Path:
    """The default output: beside the source as it was named, or in the working directory for a hub model."""
    source = prepared.source
    if source.hub_id is not None:
        parent, stem = Path(), source.name.rsplit("/", 1)[-1]
    else:
        folder = absolute_path(source.folder)
        parent, stem = folder.parent, folder.name or source.name
    names = [str(options["name"]) for options in prepared.plan.operations]
    return parent / "-".join([stem, *names])


def convert(
    model: str | Path,
    to: str | Sequence[Mapping[str, Any] | OperationOptions] = DEFAULT_OPERATION,
    *,
    output: str | Path | None = None,
    revision: str | None = None,
    mode: PlaceMode = "auto",
    force: bool = False,
    on_bytes: Progress | None = None,
    calibration: CalibrationRecord | str | Path | None = None,
    allow_unverified: bool = False,
    **options: Any,
) -> ConversionResult:
    """Convert a checkpoint: plan, then execute.

    Args:
        model: folder or hub id.
        to: name of an operation, or a list of options for several, in order.
        output: folder to write; by default beside the source, named after the operation.
        revision: branch, tag or commit of a hub model.
        mode: how unchanged shards are placed: reflink if the file system can, else copied; copied, with their SHA-256
            recorded; or hard links.
        force: replace an earlier output of this tool.
        on_bytes: called with bytes done and bytes in all.
        calibration: of :func:`surgery.calibrate`, or the file of an earlier one, ``surgery/calibration.json``.
        allow_unverified: see :func:`make_plan`.
        options: options of a single operation (``form="paper"``, ``layers="0-3"``, ...).

    Raises:
        SurgeryError: see :func:`make_plan`; also an output that exists, or too little disk space.
    """
    if "calibrate" in options:
        raise UsageError(
            "calibrate is no option of convert",
            hint="Calibrate first, and pass what surgery.calibrate(model, texts, operation) returns as calibration.",
        )
    operations = [{"name": to, **options}] if isinstance(to, str) else list(to)
    if isinstance(calibration, str | Path):
        named = [one if isinstance(one, Mapping) else one.model_dump() for one in operations]
        calibration = read_calibration(Path(calibration), named)
    prepared = make_plan(
        model, operations, revision=revision, calibration=calibration, allow_unverified=allow_unverified
    )
    return execute(prepared, Path(output) if output is not None else None, mode=mode, force=force, on_bytes=on_bytes)


def execute(
    prepared: PreparedPlan,
    output: Path | None = None,
    *,
    mode: PlaceMode = "auto",
    force: bool = False,
    on_bytes: Progress | None = None,
    on_step: Callable[[str], None] | None = None,
    check: Callable[[Path], None] | None = None,
) -> ConversionResult:
    """Execute the plan, exactly.

    Args:
        prepared: the plan.
        output, mode, force, on_bytes: as :func:`convert`.
        on_step: told the name of each step once it is done.
        check: called with the complete folder before it takes its name; if it raises, nothing is left.

    Raises:
        PlanRefusedError: the plan waits for a calibration.
        UsageError: the output exists and ``force`` is not given, or lies inside the source.
        CheckpointError: too little disk space, the disk does not take it, or the files cannot be linked.
    """
    output = output or default_output(prepared)
    for options in prepared.plan.operations:
        operation = OPERATIONS[options["name"]]
        if reason := operation.unfinished(operation.options.model_validate(options)):
            raise PlanRefusedError(reason)
    try:
        with StagedFolder(output, force=force, source=prepared.checkpoint.folder, on_step=on_step) as staged:
            require_space(staged.path, needed_bytes(prepared, mode))
            placed = _write(prepared, staged.path, mode, on_bytes, on_step)
            if check is not None:
                check(staged.path)
            staged.commit()
    except OSError as error:
        raise CheckpointError(f"{output.name} cannot be written: {error.strerror or error}") from error
    return ConversionResult(prepared.plan, output, placed)


def _write(
    prepared: PreparedPlan,
    staged: Path,
    mode: PlaceMode,
    on_bytes: Progress | None,
    on_step: Callable[[str], None] | None,
) -> dict[str, str]:
    """Write everything into the staged folder; returns how each shard was placed."""
    plan, checkpoint = prepared.plan, prepared.checkpoint
    source = checkpoint.folder
    report = adding_up(on_bytes, checkpoint.disk_bytes)
    placed, hashes = _place_shards(prepared, staged, mode, report, on_step)
    for name in plan.kept_files:
        # Small files are always copied: a program that edits a tokenizer in place must not reach the source.
        place_file(source / name, staged / name, "copy", report)
    _keep_source_record(prepared, staged)
    if hashes:
        write_json(staged / SHARDS_NAME, {"schema": 1, "sha256": hashes})
    _step(on_step, "kept files")
    new = {tensor.name: _filled(tensor.shape, tensor.start) for tensor in plan.tensors}
    weight_map = {name: plan.shards[info.shard] for name, info in checkpoint.tensors.items()}
    if new:
        write_safetensors(staged / NEW_SHARD, new, {"format": "pt"})
        weight_map |= dict.fromkeys(sorted(new), NEW_SHARD)
    write_index(staged / INDEX_NAME, weight_map, plan.bytes["source_tensors"] + plan.bytes["new_tensors"])
    _step(on_step, "wrote tensors")
    if plan.has_code:
        for name, source_text in travelling_code(str(options["name"]) for options in plan.operations).items():
            (staged / name).write_bytes(source_text)
    write_json(staged / CONFIG_NAME, converted_config(prepared))
    content = plan.to_dict()
    write_json(staged / PLAN_NAME, content)
    if prepared.calibration is not None:
        write_json(staged / CALIBRATION_NAME, prepared.calibration.to_dict())
    write_card(staged / CARD_NAME, content, source_card=source / CARD_NAME)
    _step(on_step, "wrote config")
    return placed


def _place_shards(
    prepared: PreparedPlan,
    staged: Path,
    mode: PlaceMode,
    report: Callable[[int], None],
    on_step: Callable[[str], None] | None,
) -> tuple[dict[str, str], dict[str, str]]:
    """How each shard was placed, and the SHA-256 of the shards whose hash is known."""
    source = prepared.checkpoint.folder
    shards = prepared.plan.shards
    placed: dict[str, str] = {}
    with BackgroundHasher() as following:
        for shard, name in shards.items():
            # A hash costs little if every byte is read in any case, or if the hub gave it.
            on_piece = following.follow(source / shard, report) if mode == "copy" else report
            placed[name] = place_file(source / shard, staged / name, mode, on_piece)
            _step(on_step, f"placed {name}")
        read = following.results()
    known = {name: read.get(source / shard) or content_hash(source / shard) for shard, name in shards.items()}
    return placed, {name: value for name, value in known.items() if value is not None}


def _keep_source_record(prepared: PreparedPlan, staged: Path) -> None:
    """Keep the source's own config, index and card, from which ``revert`` restores the source."""
    record = staged / RECORD_FOLDER / "source"
    for name in (CONFIG_NAME, INDEX_NAME, CARD_NAME):
        if (prepared.checkpoint.folder / name).is_file():
            place_file(prepared.checkpoint.folder / name, record / name, "copy")
    for name in prepared.plan.source_record:
        place_file(prepared.checkpoint.folder / name, record / name, "copy")


def _filled(shape: tuple[int, ...], start: float | tuple[float, ...]) -> NewTensor:
    count = math.prod(shape)
    values = start if isinstance(start, tuple) else (start,) * count
    return NewTensor("F32", shape, struct.pack(f"<{count}f", *values))


def _step(on_step: Callable[[str], None] | None, name: str) -> None:
    if on_step is not None:
        on_step(name)
