"""The plan of a zoo: state and cost of every item before any work. Reads headers and the ledger; writes nothing."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from surgery.checkpoint import Checkpoint, Source, check_output, format_size, free_bytes, resolve
from surgery.conversion import make_plan
from surgery.conversion.calibration import uncalibrated
from surgery.conversion.card import describe
from surgery.conversion.plan import PreparedPlan, needed_bytes
from surgery.errors import SurgeryError
from surgery.operations import OPERATIONS
from surgery.zoo.fingerprints import fingerprint, source_fingerprint
from surgery.zoo.items import Item, ItemCalibration
from surgery.zoo.ledger import LedgerState
from surgery.zoo.manifest import Manifest, plain_level
from surgery.zoo.outputs import GONE, OUT_OF_DATE, check_writable, find_damage, output_exists

State = Literal["ready", "done", "failed", "refused"]
# Measured: the process of an item without torch; the two processes of a verification, before they load weights.
LIGHT_BYTES = 150_000_000
TORCH_BYTES = 1_200_000_000
# The memory of a calibration: how many copies of the model in float32, and how many matrices of scores and of logits.
# For SmolLM2-135M they give 3.3 GB at 768 tokens and 6.3 GB at 4,096, where 3.1 and 6.0 were measured.
COPIES, MATRICES = 3, 2.5
_LAYER = re.compile(r"\.(\d+)\.")


@dataclass(frozen=True)
class PlannedItem:
    """One item with its state and its cost.

    Attributes:
        item: the item.
        state: ``ready``: to be run; ``done``: not run again; ``failed``: failed earlier in the interrupted run that
            is resumed, and not tried again; ``refused``: cannot be run.
        reason: why it is refused, failed, run again, or why its cost is unknown.
        hint: what the user can do about the reason; may be empty.
        family: model type of the source.
        operations: the operations in words.
        source_bytes: size of the source; None if it is not on this machine.
        disk: upper bound of the output's size in bytes; a reflink takes no space for the shards.
        memory: estimate of the highest resident memory, in bytes.
        source_fingerprint: of the source; None if it is not on this machine.
        work_fingerprint: of the operations and the verification.
        replaces_output: an output exists and will be replaced.
        warnings: of the conversion's plan.
    """

    item: Item
    state: State
    reason: str = ""
    hint: str = ""
    family: str = ""
    operations: str = ""
    source_bytes: int | None = None
    disk: int | None = None
    memory: int = LIGHT_BYTES
    source_fingerprint: str | None = None
    work_fingerprint: str = ""
    replaces_output: bool = False
    warnings: tuple[str, ...] = ()

    @property
    def fingerprint(self) -> str | None:
        """The key of the ledger; None if the source is not on this machine."""
        if self.source_fingerprint is None:
            return None
        return fingerprint(self.source_fingerprint, self.work_fingerprint)

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "item": self.item.name,
            "source": self.item.source,
            "revision": self.item.revision,
            "output": self.item.output.as_posix(),
            "state": self.state,
            "reason": self.reason,
            "hint": self.hint or None,
            "family": self.family,
            "operations": self.operations,
            "bytes": self.source_bytes,
            "disk": self.disk,
            "memory": self.memory,
            "placement": self.item.placement,
            "verify": plain_level(self.item.verify),
            "fingerprint": self.fingerprint,
            "replaces": self.replaces_output,
            "warnings": list(self.warnings),
        }


@dataclass(frozen=True)
class ZooPlan:
    """All planned items, and the free disk space.

    Attributes:
        rows: every item, in the order of the manifest.
        output: the folder of all outputs.
        free: free disk space, in bytes.
        keep_free: disk space that must stay free, in bytes.
    """

    rows: tuple[PlannedItem, ...]
    output: Path
    free: int
    keep_free: int

    def of(self, state: State) -> list[PlannedItem]:
        """The items in one state."""
        return [row for row in self.rows if row.state == state]

    @property
    def disk(self) -> int:
        """Upper bound of the disk space that all ready items take, in bytes."""
        return sum(row.disk or 0 for row in self.of("ready"))

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "output": self.output.as_posix(),
            "free": self.free,
            "keep_free": self.keep_free,
            "disk": self.disk,
            "bytes": sum(row.source_bytes or 0 for row in self.of("ready")),
            "counts": {state: len(self.of(state)) for state in ("ready", "done", "failed", "refused")},
            "items": [row.to_dict() for row in self.rows],
        }


def plan_zoo(
    manifest: Manifest,
    items: Sequence[Item],
    ledger: LedgerState,
    *,
    output: Path,
    force: bool = False,
    only_failed: bool = False,
) -> ZooPlan:
    """Plan every item. An error of one item is the reason of its row and affects no other.

    Args:
        manifest: gives the bounds.
        items: from :func:`expand`.
        ledger: state of the ledger.
        output: the folder of all outputs.
        force: replace outputs that the ledger does not know or that are out of date.
        only_failed: plan only items that failed before.

    Raises:
        CheckpointError: an item is ready, and the folder of the outputs is not writable.
    """
    free = free_bytes(output)
    rows = []
    for item in items:
        entry = ledger.entries.get(item.name)
        if only_failed and (entry is None or entry.status != "failed"):
            continue
        row = _row(item)
        if row.state == "ready":
            row = _with_history(row, ledger, force=force, only_failed=only_failed)
        rows.append(_with_output_check(row))
    if any(row.state == "ready" for row in rows):
        check_writable(output)
    return ZooPlan(tuple(_fit(rows, manifest, free)), output, free, manifest.parallel.keep_free)


def _row(item: Item) -> PlannedItem:
    """The item as if nothing had been run yet."""
    names = ", ".join(str(options["name"]) for options in item.operations)
    plain = PlannedItem(item, "ready", operations=names, work_fingerprint=item.work_fingerprint)
    if item.fault is not None:
        return replace(plain, state="refused", reason=item.fault)
    try:
        source = local_source(item)
        if source is None:
            return replace(plain, reason="not downloaded yet; the cost is known after the download")
        operations = item.operations if item.calibration is None else uncalibrated(item.operations)
        prepared = make_plan(source.folder, operations, allow_unverified=item.allow_unverified)
        if fault := _layers_fault(item, prepared):
            return replace(plain, state="refused", reason=fault)
        return replace(
            plain,
            family=str(prepared.plan.source["model_type"]),
            operations="; ".join(f"{options['name']}: {describe(options)}" for options in prepared.plan.operations),
            source_bytes=prepared.checkpoint.disk_bytes,
            disk=needed_bytes(prepared, item.placement),
            memory=memory_estimate(item, prepared),
            source_fingerprint=source_fingerprint(prepared.checkpoint),
            warnings=prepared.plan.warnings,
        )
    except SurgeryError as error:
        return replace(plain, state="refused", reason=error.message, hint=error.hint or "")
    except Exception as error:  # one model must not stop the plan of all others
        return replace(plain, state="refused", reason=f"unexpected error: {type(error).__name__}: {error}")


def _layers_fault(item: Item, prepared: PreparedPlan) -> str | None:
    """Why the first layers alone cannot be verified; without this check the error comes after the conversion."""
    if item.layers is None:
        return None
    there = len(prepared.anatomy.layers)
    if item.layers > there:
        return f"verify: layers: {item.layers}: the model has {there} layers"
    first = min((layer for options in prepared.plan.operations for layer in options["layers"]), default=0)
    if first >= item.layers:
        return f"verify: layers: {item.layers}: these layers have no operation; the first one is on layer {first}"
    return None


def local_source(item: Item) -> Source | None:
    """The source on this machine, without a request to the hub; None if the cache does not hold the hub model.

    Raises:
        SurgeryError: the folder or the hub id is wrong.
    """
    if not item.is_hub:
        return resolve(Path(item.source))
    try:
        return resolve(item.source, item.revision, local_only=True, is_hub_id=True)
    except SurgeryError as error:
        from huggingface_hub.errors import LocalEntryNotFoundError

        if isinstance(error.__cause__, LocalEntryNotFoundError):
            return None
        raise


def memory_estimate(item: Item, prepared: PreparedPlan) -> int:
    """Estimate of resident memory, in bytes: of a calibration or of the verification after it, whichever needs more.

    A verification loads the model in float32 in each of two processes.

    Raises:
        UsageError: a setting of the calibration has no effect, or a length is beyond the trained length.
    """
    needs = [LIGHT_BYTES]
    if item.verify not in ("none", "files"):
        needs.append(TORCH_BYTES + 2 * 4 * _parameters(prepared.checkpoint, item.layers))
    if item.calibration is not None:
        needs.append(_calibration_bytes(item, item.calibration, prepared))
    return max(needs)


def _calibration_bytes(item: Item, calibration: ItemCalibration, prepared: PreparedPlan) -> int:
    """Copies of the model in float32, and matrices of the longest text: of a layer's scores, and of the logits."""
    operation = OPERATIONS[calibration.operation]
    settings = operation.settings_of_calibration(calibration.settings)
    options = next(one for one in item.operations if one["name"] == operation.name)
    passes = operation.calibration_passes(settings, options, prepared.anatomy)
    longest = max((tokens for tokens, _ in passes or ()), default=0)
    # No other tensor is as long as the embeddings and the head.
    vocabulary = max(tensor.shape[0] for tensor in prepared.checkpoint.tensors.values() if tensor.shape)
    scores, logits = longest * longest * prepared.anatomy.heads, longest * vocabulary
    model = COPIES * _parameters(prepared.checkpoint, None)
    return TORCH_BYTES + 4 * (model + int(MATRICES * (scores + logits)))


def _parameters(checkpoint: Checkpoint, layers: int | None) -> int:
    total = 0
    for tensor in checkpoint.tensors.values():
        layer = _LAYER.search(tensor.name)
        if layers is None or layer is None or int(layer[1]) < layers:
            total += tensor.parameters
    return total


def _with_history(row: PlannedItem, ledger: LedgerState, *, force: bool, only_failed: bool) -> PlannedItem:
    """The item with the state that the ledger and its output give it."""
    name = row.item.name
    entry, success = ledger.entries.get(name), ledger.successes.get(name)
    exists, damage = output_exists(row.item.output), None
    if exists and success is not None and _same(row, success.fingerprint, success.work):
        damage = find_damage(row.item.output)
        if damage is None:
            unknown = "" if row.source_fingerprint else "the source is not on this machine and was not compared"
            return replace(row, state="done", reason=unknown)
    elif exists and entry is not None and entry.status == "started" and output_appeared(row.item.output, entry.event):
        # The run was killed after it renamed the output and before it wrote the event.
        if _same(row, entry.fingerprint, entry.work):
            damage = find_damage(row.item.output)
            if damage is None:
                return replace(row, state="done", reason="complete when the run was killed")
        success = entry
    if entry is not None and entry.status == "failed" and not only_failed and not ledger.run_ended:
        same = _same(row, entry.fingerprint, entry.work)
        if same and entry.run == ledger.run:
            return replace(row, state="failed", reason=str(entry.event.get("message", "")))
    if not exists:
        was_done = entry is not None and entry.status == "done"
        return replace(row, reason=row.reason or GONE) if was_done else row
    if damage is not None:  # the ledger knows the output, so --force is not needed
        return replace(row, replaces_output=True, reason=damage)
    if force:
        return replace(row, replaces_output=True)
    return replace(
        row,
        state="refused",
        reason=OUT_OF_DATE if success else "the output exists and is not in the ledger; --force replaces it",
    )


def _with_output_check(row: PlannedItem) -> PlannedItem:
    """Refuse a ready item whose output may not be written: it lies in the source, or would replace other files."""
    if row.state != "ready":
        return row
    source = None if row.item.is_hub else Path(row.item.source)
    try:
        check_output(row.item.output, force=row.replaces_output, source=source)
    except SurgeryError as error:
        why = f"{row.reason}; " if row.reason else ""
        return replace(row, state="refused", reason=why + error.message, hint=error.hint or "")
    return row


def _same(row: PlannedItem, known: str | None, work: str | None) -> bool:
    return work == row.work_fingerprint and (row.source_fingerprint is None or known == row.fingerprint)


def folder_id(folder: Path) -> list[int] | None:
    """Device and inode of the folder that has this name now; None if there is none."""
    try:
        status = folder.stat()
    except OSError:
        return None
    return [status.st_dev, status.st_ino]


def output_appeared(output: Path, started: Mapping[str, Any]) -> bool:
    """Whether the output was completed after this ``started`` event: it appears only whole, with its checks passed."""
    now = folder_id(output)
    return now is not None and now != started.get("replaces")


def _fit(rows: Sequence[PlannedItem], manifest: Manifest, free: int) -> list[PlannedItem]:
    """Refuse items above their limits, and items that find no disk space after the items before them."""
    left = free - manifest.parallel.keep_free
    fitted = []
    for row in rows:
        reason = None
        limits = row.item.limits
        if row.state == "ready":
            if limits.disk is not None and (row.disk or 0) > limits.disk:
                reason = f"needs {format_size(row.disk or 0)} of disk, its limit is {format_size(limits.disk)}"
            elif limits.memory is not None and row.memory > limits.memory:
                reason = f"needs about {format_size(row.memory)} of memory, its limit is {format_size(limits.memory)}"
            elif manifest.parallel.memory is not None and row.memory > manifest.parallel.memory:
                bound = format_size(manifest.parallel.memory)
                reason = f"needs about {format_size(row.memory)} of memory, parallel.memory is {bound}"
            elif (row.disk or 0) > left:
                reason = (
                    f"needs {format_size(row.disk or 0)} of disk, the items before it leave "
                    f"{format_size(max(left, 0))} ({format_size(manifest.parallel.keep_free)} stay free)"
                )
            else:
                left -= row.disk or 0
        fitted.append(row if reason is None else replace(row, state="refused", reason=reason))
    return fitted
