"""What a zoo will cost, item by item, before any work: read from headers and the ledger; nothing is written."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from surgery.checkpoint import Checkpoint, Source, check_output, format_size, free_bytes, resolve
from surgery.conversion import make_plan
from surgery.conversion.card import describe
from surgery.conversion.plan import PreparedPlan, needed_bytes
from surgery.errors import SurgeryError
from surgery.zoo.fingerprints import fingerprint, source_fingerprint, work_fingerprint
from surgery.zoo.items import Item
from surgery.zoo.ledger import LedgerState
from surgery.zoo.manifest import Manifest, plain_level
from surgery.zoo.outputs import GONE, OUT_OF_DATE, check_writable, damage, is_there

State = Literal["ready", "done", "failed", "refused"]
# Measured: an item's process without torch; the two processes of a verification, before any weight.
LIGHT_BYTES = 150_000_000
TORCH_BYTES = 1_200_000_000
_LAYER = re.compile(r"\.(\d+)\.")


@dataclass(frozen=True)
class Row:
    """One item with what it costs.

    Attributes:
        item: what is to be done.
        state: ``done`` is left alone; ``failed`` failed in this run before it was interrupted, and is left too;
            ``refused`` cannot be done.
        reason: why it is refused, how it failed, what is not known yet, or why what was done is done again.
        hint: what to do about the reason, or nothing.
        family: model type of the source.
        operations: what is done, in words.
        bytes: of the source.
        disk: bytes that the output may take, from above: a reflink takes none for the shards.
        memory: estimate of the greatest resident memory.
        source: fingerprint of the source, or None where it is not at hand.
        work: fingerprint of the work.
        again: an output is there and is to be replaced.
        warnings: of the conversion's plan.
    """

    item: Item
    state: State
    reason: str = ""
    hint: str = ""
    family: str = ""
    operations: str = ""
    bytes: int | None = None
    disk: int | None = None
    memory: int = LIGHT_BYTES
    source: str | None = None
    work: str = ""
    again: bool = False
    warnings: tuple[str, ...] = ()

    @property
    def fingerprint(self) -> str | None:
        """The ledger's key, or None where the source is not at hand."""
        return None if self.source is None else fingerprint(self.source, self.work)

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
            "bytes": self.bytes,
            "disk": self.disk,
            "memory": self.memory,
            "placement": self.item.placement,
            "verify": plain_level(self.item.verify),
            "fingerprint": self.fingerprint,
            "replaces": self.again,
            "warnings": list(self.warnings),
        }


@dataclass(frozen=True)
class ZooPlan:
    """Every row, and what the disk has."""

    rows: tuple[Row, ...]
    output: Path
    free: int
    keep_free: int

    def of(self, state: State) -> list[Row]:
        """The rows in one state."""
        return [row for row in self.rows if row.state == state]

    @property
    def disk(self) -> int:
        """Bytes that what is ready may take together."""
        return sum(row.disk or 0 for row in self.of("ready"))

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "output": self.output.as_posix(),
            "free": self.free,
            "keep_free": self.keep_free,
            "disk": self.disk,
            "bytes": sum(row.bytes or 0 for row in self.of("ready")),
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
    """Plan every item; what is wrong with one is its row's reason and nobody else's.

    Args:
        manifest: for the bounds.
        items: what :func:`expand` gives.
        ledger: what is done already.
        output: the folder of all outputs.
        force: replace outputs that the ledger does not know, or that were made from something else.
        only_failed: leave out what has not failed before.

    Raises:
        CheckpointError: something is to be done, and nothing can be written where the outputs belong.
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
        rows.append(_with_place(row))
    if any(row.state == "ready" for row in rows):
        check_writable(output)
    return ZooPlan(tuple(_fit(rows, manifest, free)), output, free, manifest.parallel.keep_free)


def _row(item: Item) -> Row:
    work = work_fingerprint(item.operations, plain_level(item.verify))
    names = ", ".join(str(options["name"]) for options in item.operations)
    plain = Row(item, "ready", operations=names, work=work)
    if item.fault is not None:
        return replace(plain, state="refused", reason=item.fault)
    try:
        source = at_hand(item)
        if source is None:
            return replace(plain, reason="not fetched yet; its cost is known once it is")
        prepared = make_plan(source.folder, item.operations, allow_unverified=item.allow_unverified)
        if fault := _layers_fault(item, prepared):
            return replace(plain, state="refused", reason=fault)
        return replace(
            plain,
            family=str(prepared.plan.source["model_type"]),
            operations="; ".join(f"{options['name']}: {describe(options)}" for options in prepared.plan.operations),
            bytes=prepared.checkpoint.disk_bytes,
            disk=needed_bytes(prepared, item.placement),
            memory=memory_estimate(item, prepared),
            source=source_fingerprint(prepared.checkpoint),
            warnings=prepared.plan.warnings,
        )
    except SurgeryError as error:
        return replace(plain, state="refused", reason=error.message, hint=error.hint or "")
    except Exception as error:  # a plan of a hundred models must not fall with one of them
        return replace(plain, state="refused", reason=f"not foreseen: {type(error).__name__}: {error}")


def _layers_fault(item: Item, prepared: PreparedPlan) -> str | None:
    """Why the verification of the first layers cannot be run, which it would say only after the conversion."""
    if item.layers is None:
        return None
    there = len(prepared.anatomy.layers)
    if item.layers > there:
        return f"verify: layers: {item.layers}: the model has {there} layers"
    first = min((layer for options in prepared.plan.operations for layer in options["layers"]), default=0)
    if first >= item.layers:
        return f"verify: layers: {item.layers}: no operation is performed on these; the first is on layer {first}"
    return None


def at_hand(item: Item) -> Source | None:
    """The source without asking the hub; None for a hub model that the cache does not hold.

    Raises:
        SurgeryError: the folder or the hub id is wrong.
    """
    if not item.is_hub:
        return resolve(Path(item.source))
    try:
        return resolve(item.source, item.revision, local_only=True)
    except SurgeryError as error:
        from huggingface_hub.errors import LocalEntryNotFoundError

        if isinstance(error.__cause__, LocalEntryNotFoundError):
            return None
        raise


def memory_estimate(item: Item, prepared: PreparedPlan) -> int:
    """Resident bytes that an item may need: a verification holds the model twice in float32, in two processes."""
    if item.verify in ("none", "files"):
        return LIGHT_BYTES
    return TORCH_BYTES + 2 * 4 * _parameters(prepared.checkpoint, item.layers)


def _parameters(checkpoint: Checkpoint, layers: int | None) -> int:
    total = 0
    for tensor in checkpoint.tensors.values():
        layer = _LAYER.search(tensor.name)
        if layers is None or layer is None or int(layer[1]) < layers:
            total += tensor.parameters
    return total


def _with_history(row: Row, ledger: LedgerState, *, force: bool, only_failed: bool) -> Row:
    name = row.item.name
    entry, success = ledger.entries.get(name), ledger.successes.get(name)
    there, broken = is_there(row.item.output), None
    if there and success is not None and _same(row, success.fingerprint, success.work):
        broken = damage(row.item.output)
        if broken is None:
            unknown = "" if row.source is not None else "the source is not at hand, and was not compared"
            return replace(row, state="done", reason=unknown)
    elif there and entry is not None and entry.status == "started" and appeared(row.item.output, entry.event):
        # A kill came between the renaming and the line in the ledger.
        if _same(row, entry.fingerprint, entry.work):
            broken = damage(row.item.output)
            if broken is None:
                return replace(row, state="done", reason="complete when the run was killed")
        success = entry
    if entry is not None and entry.status == "failed" and not only_failed and not ledger.run_ended:
        same = _same(row, entry.fingerprint, entry.work)
        if same and entry.run == ledger.run:
            return replace(row, state="failed", reason=str(entry.event.get("message", "")))
    if not there:
        was_done = entry is not None and entry.status == "done"
        return replace(row, reason=row.reason or GONE) if was_done else row
    if broken is not None:
        return replace(row, again=True, reason=broken)  # it is ours, as the ledger says: no --force is needed
    if force:
        return replace(row, again=True)
    return replace(
        row,
        state="refused",
        reason=OUT_OF_DATE if success else "the output is there and not in the ledger; --force replaces it",
    )


def _with_place(row: Row) -> Row:
    """Refuse what is ready and could not be written: an output within the source, or over what is not ours."""
    if row.state != "ready":
        return row
    source = None if row.item.is_hub else Path(row.item.source)
    try:
        check_output(row.item.output, force=row.again, source=source)
    except SurgeryError as error:
        why = f"{row.reason}; " if row.reason else ""
        return replace(row, state="refused", reason=why + error.message, hint=error.hint or "")
    return row


def _same(row: Row, known: str | None, work: str | None) -> bool:
    return work == row.work and (row.source is None or known == row.fingerprint)


def identity(folder: Path) -> list[int] | None:
    """Which folder has this name now: device and number, or None where there is none."""
    try:
        status = folder.stat()
    except OSError:
        return None
    return [status.st_dev, status.st_ino]


def appeared(output: Path, started: Mapping[str, Any]) -> bool:
    """Whether the output took its name after that start: an output appears only whole, checks included."""
    now = identity(output)
    return now is not None and now != started.get("replaces")


def _fit(rows: Sequence[Row], manifest: Manifest, free: int) -> list[Row]:
    """Refuse what is above its limits or finds no room after those before it."""
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
