"""Checks of the files: torch-free, and the only ones that look at every byte of the weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy

from surgery.checkpoint import Checkpoint, load_json, same_tensor_bytes, sha256_json, tensor_bytes
from surgery.checkpoint.record import CALIBRATION_NAME
from surgery.conversion.card import has_code
from surgery.conversion.code import SINGLE_FILE, recorded_code
from surgery.conversion.external_save import is_saved_externally
from surgery.conversion.records import trained_weights
from surgery.operations.code import ENTRY_NAME, code_hashes, is_code_name, travelling_code
from surgery.operations.parameters import is_operation
from surgery.verification.checks import SOURCE_TENSORS, Check
from surgery.verification.merge_record import merge_checks
from surgery.verification.source_config import config_checks


def file_checks(
    checkpoint: Checkpoint,
    plan: Mapping[str, Any],
    source: Checkpoint | None,
    on_bytes: Callable[[int, int], None] | None = None,
) -> list[Check]:
    """Check the files of a converted folder against its plan, and against the source if it is given.

    Args:
        checkpoint: the converted folder.
        plan: its plan, as plain data.
        source: the folder it was made from.
        on_bytes: called with bytes compared and bytes in all.
    """
    return [
        _plan_check(checkpoint, plan),
        *merge_checks(checkpoint.folder),
        *config_checks(checkpoint, plan, source),
        _new_tensors(checkpoint, plan),
        _travelling_code(checkpoint, plan),
        _source_tensors(checkpoint, plan, source, on_bytes),
        _kept_files(checkpoint, plan, source),
        *_calibration(checkpoint, plan),
    ]


def _plan_check(checkpoint: Checkpoint, plan: Mapping[str, Any]) -> Check:
    name = "config.json carries the plan"
    if is_saved_externally(checkpoint.folder):
        return Check(name, "skipped", "another program saved it: the plan is what config.json says")
    block = checkpoint.config.get("surgery", {})
    expected = sha256_json({key: value for key, value in plan.items() if key != "hash"})
    if plan.get("hash") != expected:
        return Check(name, "failed", "plan.json was changed: its content does not match its hash")
    if block.get("plan_hash") != expected:
        return Check(name, "failed", "config.json has the hash of another plan")
    if block.get("operations") != list(plan["operations"]):
        return Check(name, "failed", "the operations in config.json differ from the plan")
    return Check(name, "passed", f"plan {expected[:16]}")


def _calibration(checkpoint: Checkpoint, plan: Mapping[str, Any]) -> list[Check]:
    """Thresholds that come from a calibration: its record must be the one that the plan names."""
    name = "calibration.json is the plan's"
    named = [options["calibration"] for options in plan["operations"] if options.get("calibration")]
    if not named:
        return []
    path = checkpoint.folder / CALIBRATION_NAME
    if not path.is_file():
        return [Check(name, "failed", f"{CALIBRATION_NAME} is missing")]
    if sha256_json(load_json(path)) != named[0]:
        return [Check(name, "failed", f"{CALIBRATION_NAME} does not match the hash in the plan")]
    return [Check(name, "passed", f"calibration {named[0][:16]}")]


def _new_tensors(checkpoint: Checkpoint, plan: Mapping[str, Any]) -> Check:
    name = "new tensors complete and finite"
    planned = {entry["name"]: tuple(entry["shape"]) for entry in plan["tensors"]}
    for tensor_name, shape in planned.items():
        info = checkpoint.tensors.get(tensor_name)
        if info is None:
            return Check(name, "failed", f"{tensor_name} is missing")
        if info.shape == shape and info.dtype in ("BF16", "F16"):
            return Check(
                name, "failed", f"{tensor_name} is stored as {info.dtype}, which rounded it; the plan says F32"
            )
        if info.dtype != "F32" or info.shape != shape:
            return Check(name, "failed", f"{tensor_name} is {info.dtype} {info.shape}; the plan says F32 {shape}")
        with tensor_bytes(checkpoint.folder / info.shard, info) as raw:
            values = numpy.frombuffer(raw, dtype="<f4").copy()
        if not numpy.isfinite(values).all():
            return Check(name, "failed", f"{tensor_name} has a value that is not finite")
    stray = [t for t in checkpoint.tensors if t not in planned and is_operation(t)]
    if stray:
        return Check(name, "failed", f"{stray[0]} is not in the plan")
    if not planned:
        return Check(name, "passed", "the plan adds none")
    return Check(name, "passed", f"{len(planned)} tensors, {sum(math.prod(s) for s in planned.values())} numbers")


def _travelling_code(checkpoint: Checkpoint, plan: Mapping[str, Any]) -> Check:
    name = "code is this version's"
    present = {file: checkpoint.folder / file for file in checkpoint.other_files if is_code_name(file)}
    if not has_code(plan):
        if present or checkpoint.config.get("model_type") != plan["source"]["model_type"]:
            return Check(name, "failed", "there is code, or a model type that needs code")
        return Check(name, "passed", "no code travels: the family's own class runs this checkpoint")
    found = code_hashes({file: path.read_bytes() for file, path in present.items()})
    if found == {ENTRY_NAME: SINGLE_FILE}:
        return Check(
            name, "passed", "the single file of an earlier version; `surgery refresh` writes this version's files"
        )
    code = travelling_code(str(options["name"]) for options in plan["operations"])
    expected, recorded = code_hashes(code), recorded_code(checkpoint.folder, plan)
    for file in expected:
        if file not in found:
            return Check(name, "failed", f"{file} is missing; `surgery refresh` writes it")
        if found[file] != expected[file]:
            other = "is of another version" if found[file] == recorded.get(file) else "was changed"
            if file not in recorded:
                other = "is of another version, or was changed"
            return Check(name, "failed", f"{file} {other}; `surgery refresh` writes this version's")
    if extra := sorted(found.keys() - expected.keys()):
        return Check(name, "failed", f"{extra[0]} is not part of this checkpoint's code")
    lines = sum(content.count(b"\n") for content in code.values())
    return Check(name, "passed", f"{len(code)} files, {lines} lines")


def _source_tensors(
    checkpoint: Checkpoint,
    plan: Mapping[str, Any],
    source: Checkpoint | None,
    on_bytes: Callable[[int, int], None] | None,
) -> Check:
    name = SOURCE_TENSORS
    if source is None:
        return Check(name, "skipped", "needs the source: pass --against")
    trained = trained_weights(checkpoint.folder)
    new = {entry["name"] for entry in plan["tensors"]}
    theirs = {tensor: info for tensor, info in checkpoint.tensors.items() if tensor not in new}
    if theirs.keys() != source.tensors.keys():
        odd = sorted(theirs.keys() ^ source.tensors.keys())
        return Check(name, "failed", f"{len(odd)} tensors are in only one of the two; the first is {odd[0]}")
    total, done, changed = source.total_bytes, 0, []
    for tensor, info in source.tensors.items():
        own = theirs[tensor]
        if not same_tensor_bytes(source.folder / info.shard, info, checkpoint.folder / own.shard, own):
            changed.append(tensor)
        done += info.nbytes
        if on_bytes is not None:
            on_bytes(done, total)
    if changed and trained:
        return Check(name, "skipped", f"{len(changed)} of {len(theirs)} tensors differ ({trained})")
    if changed:
        return Check(name, "failed", f"{len(changed)} of {len(theirs)} tensors differ; the first is {changed[0]}")
    return Check(name, "passed", f"{len(theirs)} tensors, {total / 1e6:,.0f} MB")


def _kept_files(checkpoint: Checkpoint, plan: Mapping[str, Any], source: Checkpoint | None) -> Check:
    name = "other files byte for byte"
    if source is None:
        return Check(name, "skipped", "needs the source: pass --against")
    if is_saved_externally(checkpoint.folder):
        return Check(name, "skipped", "another program saved it: the files of the source are not known")
    for file in plan["kept_files"]:
        theirs, own = source.folder / file, checkpoint.folder / file
        if not own.is_file() or not theirs.is_file() or own.read_bytes() != theirs.read_bytes():
            return Check(name, "failed", f"{file} differs from the source's")
    return Check(name, "passed", f"{len(plan['kept_files'])} files")
