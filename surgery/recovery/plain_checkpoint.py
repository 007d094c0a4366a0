"""A merged checkpoint of the source's own class, without code: the operations that it drops, and its files."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from surgery.anatomy import Anatomy
from surgery.checkpoint import (
    CONFIG_NAME,
    INDEX_NAME,
    Checkpoint,
    load_config,
    place_file,
    safe_relative,
    write_index,
    write_json,
)
from surgery.checkpoint.numbers import read_numbers
from surgery.checkpoint.record import MERGE_NAME, RECORD_FOLDER
from surgery.conversion.card import write_merged_card
from surgery.conversion.config import with_changes
from surgery.conversion.options import recorded_operations
from surgery.conversion.plan import CARD_NAME
from surgery.conversion.records import changes_weights, trained_line
from surgery.operations import OPERATIONS
from surgery.operations.parameters import is_operation
from surgery.recovery.result_folder import check_fit, plain_name, write_shard

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Merged:
    """What a plain checkpoint is made of, beside the converted one.

    Attributes:
        plan: of the converted checkpoint, as plain data.
        changed: tensors that the merge changed, by name.
        dropped: names of the operations that changed nothing.
        history: the trainings of the checkpoint, oldest first.
    """

    plan: Mapping[str, Any]
    changed: Mapping[str, torch.Tensor]
    dropped: Sequence[str]
    history: Sequence[Mapping[str, Any]]


def operations_without_effect(
    checkpoint: Checkpoint, anatomy: Anatomy, changed: Mapping[str, torch.Tensor] | None = None
) -> tuple[str, ...]:
    """Names of the operations whose learned parameters are exactly those at which nothing changes.

    Needs no torch where nothing was changed.

    Args:
        checkpoint: the converted one.
        anatomy: of it.
        changed: tensors that replace those of the checkpoint, by name.

    Raises:
        CheckpointError: config.json has options that are not valid.
    """
    found = []
    for options in recorded_operations(checkpoint.folder.name, anatomy.operations):
        operation = OPERATIONS[options.name]
        modules = [f"{anatomy.layers[int(layer)].module}.{operation.name}" for layer in options.layers]
        if not operation.in_config_alone and all(
            operation.changes_nothing(options, _values(checkpoint, module, changed or {})) for module in modules
        ):
            found.append(operation.name)
    return tuple(found)


def _values(checkpoint: Checkpoint, module: str, changed: Mapping[str, torch.Tensor]) -> dict[str, list[float]]:
    """The numbers of one module of an operation, by the name of the tensor in it."""
    names = [name for name in checkpoint.tensors if name.rpartition(".")[0] == module]
    return {
        name.rpartition(".")[2]: (changed[name] if name in changed else read_numbers(checkpoint, name)).tolist()
        for name in names
    }


def write_plain(checkpoint: Checkpoint, merged: Merged, folder: Path) -> None:
    """Write the source's files with the changed tensors; config.json has what operations changed in it alone.

    Args:
        checkpoint: the converted one, with the record of its source.
        merged: what was merged into it.
        folder: an empty folder.

    Raises:
        CheckpointError: a changed tensor is not in the checkpoint, or has another shape.
    """
    check_fit(checkpoint, merged.changed)
    plan, record = merged.plan, checkpoint.folder / RECORD_FOLDER / "source"
    own = {name: info for name, info in checkpoint.tensors.items() if not is_operation(name)}
    shards = {info.shard: plain_name(info.shard) for info in own.values()}
    for shard, name in shards.items():
        write_shard(checkpoint, shard, merged.changed, folder / name)
    if len(shards) > 1 or (record / INDEX_NAME).is_file():
        weight_map = {name: shards[info.shard] for name, info in own.items()}
        write_index(folder / INDEX_NAME, weight_map, sum(info.end - info.begin for info in own.values()))
    for name in plan["kept_files"]:
        safe_relative(name)
        place_file(checkpoint.folder / name, folder / name)
    _write_record(merged, record, folder)
    write_json(folder / CONFIG_NAME, with_changes(load_config(record / CONFIG_NAME), plan["config"]))


def _write_record(merged: Merged, source: Path, folder: Path) -> None:
    """The record of the merge, the source's card in it, and a card of its own."""
    plan, changed, history = merged.plan, merged.changed, merged.history
    card = folder / RECORD_FOLDER / "source" / CARD_NAME
    if (source / CARD_NAME).is_file():
        place_file(source / CARD_NAME, card)
    (folder / RECORD_FOLDER).mkdir(exist_ok=True)
    kept = {name: plan[name] for name in ("tool_version", "source", "operations", "hash")}
    told = {"dropped": list(merged.dropped), "history": list(history), "changed": sorted(changed)}
    write_json(folder / MERGE_NAME, {"schema": 1, **kept, **told})
    write_merged_card(
        folder / CARD_NAME,
        plan,
        source_card=card,
        changed=len(changed),
        dropped=merged.dropped,
        trained=[trained_line(entry) for entry in history] if any(map(changes_weights, history)) else (),
    )


def all_dropped(anatomy: Anatomy, dropped: Collection[str]) -> bool:
    """Whether no operation with code is left, and one was dropped."""
    left = {str(options["name"]) for options in anatomy.operations} - set(dropped)
    return bool(dropped) and all(OPERATIONS[name].in_config_alone for name in left)
