"""Write the trained model as a full checkpoint, in the format of the converted checkpoint.

A shard without changes is placed as it is. Other shards are written again with the same tensors and dtypes; if they
hold weights of the source, their names begin with ``trained``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from surgery.checkpoint import (
    CONFIG_NAME,
    INDEX_NAME,
    TORCH_DTYPES,
    Checkpoint,
    NewTensor,
    StagedFolder,
    dump_json,
    load_json,
    place_file,
    require_space,
    tensor_bytes,
    write_index,
    write_safetensors,
)
from surgery.checkpoint.record import HISTORY_NAME
from surgery.checkpoint.tokenizer_files import is_tokenizer_file
from surgery.conversion.plan import SHARD_PREFIX
from surgery.errors import CheckpointError
from surgery.operations.parameters import is_operation
from surgery.recovery.quantized import renames_alone

if TYPE_CHECKING:
    import torch
    from torch import nn

_TRAINED = "trained-"


@dataclass(frozen=True)
class Record:
    """The record of a training in ``OUT/surgery``: an entry of the history, and files."""

    entry: Mapping[str, Any]
    recipe: str | None = None
    log: str | None = None
    draw: Any = None  # called with the path of the picture
    adapter: Any = None  # called with the folder of the adapter
    logs: Mapping[str, str] = field(default_factory=dict)  # of the controls


def plan_space(source: Checkpoint, output: Path, count: int = 1) -> None:
    """Check before training that the result fits on the disk.

    Args:
        source: a checkpoint of the same size.
        output: folder for the result.
        count: number of results, with those of controls.

    Raises:
        CheckpointError: too little space is free; the message has both numbers.
    """
    require_space(output.parent, count * source.disk_bytes)


def changed_tensors(model: nn.Module, names: Sequence[str]) -> dict[str, torch.Tensor]:
    """The trained parameters, by their names in the checkpoint.

    Args:
        model: without LoRA, or with it merged.
        names: the trained parameters, by their names in the model.
    """
    from transformers.core_model_loading import revert_weight_conversion

    wanted = set(names)
    # Tied parameters are one tensor with one name, as in the checkpoint.
    state = {name: parameter.detach() for name, parameter in model.named_parameters() if name in wanted}
    unwrapped: Any = model
    with renames_alone(unwrapped):
        return dict(revert_weight_conversion(unwrapped, state))


def write_result(
    source: Checkpoint,
    output: Path,
    changed: Mapping[str, torch.Tensor],
    record: Record,
    *,
    force: bool = False,
    verify: Callable[[Path], None] | None = None,
) -> Path:
    """Write the trained checkpoint: staged, then renamed.

    Args:
        source: the converted checkpoint that was trained.
        output: the new folder.
        changed: trained tensors by their name in ``source``.
        record: of the training.
        force: replace an earlier output of this tool.
        verify: called with the staged folder before it becomes the output; if it raises, the folder is removed.

    Raises:
        CheckpointError: a trained tensor is not in the source or has another shape; or the disk is full.
        UsageError: as `check_output`.
    """
    check_fit(source, changed)
    with StagedFolder(output, force=force, source=source.folder) as staged:
        new_names = {shard: _place_shard(source, shard, changed, staged.path) for shard in source.shards}
        placed = [CONFIG_NAME, *source.other_files]
        if any(old != new for old, new in new_names.items()):
            weight_map = {name: new_names[info.shard] for name, info in source.tensors.items()}
            metadata = dict((source.index or {}).get("metadata") or {})
            total = metadata.pop("total_size", source.total_bytes)
            write_index(staged.path / INDEX_NAME, weight_map, total, metadata=metadata)
        elif source.index is not None:
            placed.append(INDEX_NAME)
        for name in placed:
            target = staged.path / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if name != HISTORY_NAME:
                place_file(source.folder / name, target)
        _write_record(source, staged.path, record)
        if verify is not None:
            verify(staged.path)
        return staged.commit()


def check_fit(source: Checkpoint, changed: Mapping[str, torch.Tensor]) -> None:
    """Check that every trained tensor has a place in the checkpoint.

    Raises:
        CheckpointError: a trained tensor is not in the source or has another shape.
    """
    for name, tensor in changed.items():
        info = source.tensors.get(name)
        if info is None or info.shape != tuple(tensor.shape):
            raise CheckpointError(
                f"the trained tensor {name!r} {tuple(tensor.shape)} is not in the source"
                + (f", which has the shape {info.shape}" if info else "")
            )


def write_adapter(source: Checkpoint, output: Path, adapter: Any, record: Record, *, force: bool = False) -> Path:
    """Write an adapter that was not merged: PEFT's files, the tokenizer, and the record of the training.

    Args:
        source: the base.
        output: the new folder.
        adapter: called with the folder to write PEFT's files into.
        record: of the training.
        force: replace an earlier output of this tool.
    """
    with StagedFolder(output, force=force, source=source.folder) as staged:
        for name in source.other_files:
            if is_tokenizer_file(name):
                place_file(source.folder / name, staged.path / name)
        adapter(staged.path)
        _write_record(source, staged.path, record)
        return staged.commit()


def write_shard(source: Checkpoint, shard: str, changed: Mapping[str, torch.Tensor], path: Path) -> None:
    """Write a shard again, with the dtypes of the source; one without changes is placed as it is.

    Args:
        source: the checkpoint that has the shard.
        shard: name of its file.
        changed: new values of tensors by name; those of other shards are left alone.
        path: of the new file.
    """
    infos = {name: info for name, info in source.tensors.items() if info.shard == shard}
    path.parent.mkdir(parents=True, exist_ok=True)
    if not infos.keys() & changed.keys():
        place_file(source.folder / shard, path)
        return
    tensors = {
        name: NewTensor(
            info.dtype,
            info.shape,
            _to_bytes(changed[name], info.dtype)
            if name in changed
            else bytes(tensor_bytes(source.folder / shard, info)),
        )
        for name, info in infos.items()
    }
    write_safetensors(path, tensors, source.metadata.get(shard))


def plain_name(shard: str) -> str:
    """The name that a shard of a converted checkpoint has in the source."""
    place, slash, name = shard.rpartition("/")
    return f"{place}{slash}{name.removeprefix(_TRAINED).removeprefix(SHARD_PREFIX)}"


def _place_shard(source: Checkpoint, shard: str, changed: Mapping[str, torch.Tensor], folder: Path) -> str:
    """Place or rewrite one shard; returns its name in the result."""
    infos = [name for name, info in source.tensors.items() if info.shard == shard]
    trained = not changed.keys().isdisjoint(infos) and not all(map(is_operation, infos))
    name = _trained_name(shard) if trained else shard
    write_shard(source, shard, changed, folder / name)
    return name


def _trained_name(shard: str) -> str:
    place, slash, name = shard.rpartition("/")
    return f"{place}{slash}{_TRAINED}{plain_name(name)}"


def _to_bytes(tensor: torch.Tensor, dtype: str) -> bytes:
    import torch

    if dtype not in TORCH_DTYPES:
        raise CheckpointError(f"a trained tensor cannot be written as {dtype}", hint="Train other parameters.")
    value = tensor.detach().to("cpu", getattr(torch, TORCH_DTYPES[dtype])).contiguous()
    return value.reshape(-1).view(torch.uint8).numpy().tobytes()


def _write_record(source: Checkpoint, folder: Path, record: Record) -> None:
    history = (
        load_json(source.folder / HISTORY_NAME) if HISTORY_NAME in source.other_files else {"schema": 1, "entries": []}
    )
    entries = history.get("entries")
    if not isinstance(entries, list):
        raise CheckpointError(f"{HISTORY_NAME} has no list of entries")
    place = folder / "surgery"
    place.mkdir(exist_ok=True)
    taken = {path.name for path in place.iterdir()}
    entry = dict(record.entry)
    for key, name, text in (("recipe", "recipe.yaml", record.recipe), ("log", "log.jsonl", record.log)):
        if text is not None:
            entry[key] = _free(name, taken)
            (place / entry[key]).write_text(text, encoding="utf-8")
    if record.draw is not None:
        entry["curves"] = _free("training.png", taken)
        record.draw(place / entry["curves"])
    for name, text in record.logs.items():
        file = _free(f"{name}.jsonl", taken)
        (place / file).write_text(text, encoding="utf-8")
        entry[name] = file
    if record.adapter is not None:
        entry["adapter"] = _free("adapter", {path.name for path in folder.iterdir()})
        record.adapter(folder / entry["adapter"])
    (folder / HISTORY_NAME).write_text(dump_json({**history, "entries": [*entries, entry]}), encoding="utf-8")


def _free(name: str, taken: set[str]) -> str:
    """A free name: ``recipe.yaml``, or ``recipe-2.yaml`` after a second training."""
    stem, dot, suffix = name.partition(".")
    number = 1
    while (candidate := name if number == 1 else f"{stem}-{number}{dot}{suffix}") in taken:
        number += 1
    return candidate
