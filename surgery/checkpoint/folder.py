"""A model folder as one value: its config, tensors, shards and other files."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from surgery.checkpoint.contents import FolderContents, list_contents
from surgery.checkpoint.headers import TensorInfo, read_header
from surgery.checkpoint.hub_cache import snapshot_of
from surgery.checkpoint.names import quote, quoted_list, safe_relative
from surgery.checkpoint.near_folders import holds_model
from surgery.checkpoint.source import Source, absolute_path, check_folder
from surgery.checkpoint.strict_json import INDEX_LIMIT, load_config, load_json
from surgery.checkpoint.unsupported_weights import adapter_error, no_weights_error
from surgery.errors import CheckpointError

CONFIG_NAME = "config.json"
INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"


@dataclass(frozen=True)
class Checkpoint:
    """A model folder, read from its JSON files and headers alone.

    Attributes:
        folder: the folder.
        config: config.json.
        index: the index of the shards; None if there is a single file.
        tensors: by name; ordered by shard, and by position in the shard.
        shards: names of the safetensors files.
        other_files: relative POSIX names of all files that are neither config, index nor shards.
        skipped: hidden folders.
        total_bytes: size of all tensors.
        total_parameters: number of elements of all tensors.
        commit: of the hub repository; None if unknown.
        file_sizes: size of every file, in bytes.
        metadata: text metadata of every shard.
    """

    folder: Path
    config: dict[str, Any]
    index: dict[str, Any] | None
    tensors: Mapping[str, TensorInfo]
    shards: tuple[str, ...]
    other_files: tuple[str, ...]
    skipped: tuple[str, ...]
    total_bytes: int
    total_parameters: int
    commit: str | None
    file_sizes: Mapping[str, int]
    metadata: Mapping[str, dict[str, str]]

    @property
    def disk_bytes(self) -> int:
        """Size of all files, in bytes: the size of a full copy."""
        return sum(self.file_sizes.values())


def open_checkpoint(folder: Path | Source) -> Checkpoint:
    """Read a model folder without its weights.

    Raises:
        CheckpointError: the folder is missing or holds no safetensors model (the hint has the command that creates
            one); a file is broken or hostile; index, shards and tensors disagree.
    """
    commit = folder.commit if isinstance(folder, Source) else None
    folder = folder.folder if isinstance(folder, Source) else Path(folder)
    check_folder(folder)
    _check_names(folder)  # before the walk: a folder that is no model may hold anything
    contents = list_contents(folder)
    config = load_config(folder / CONFIG_NAME)
    index = load_json(folder / INDEX_NAME, INDEX_LIMIT) if INDEX_NAME in contents.sizes else None
    weight_map = None if index is None else _weight_map(index)
    shards = _shards(folder, contents, weight_map)
    tensors, metadata = _read_shards(folder, shards)
    if weight_map is not None:
        _compare(weight_map, tensors)
    snapshot = snapshot_of(folder)
    own = {CONFIG_NAME, INDEX_NAME, *shards}
    return Checkpoint(
        folder=folder,
        config=config,
        index=index,
        tensors=MappingProxyType(tensors),
        shards=shards,
        other_files=tuple(name for name in contents.sizes if name not in own),
        skipped=tuple(contents.skipped),
        total_bytes=sum(tensor.nbytes for tensor in tensors.values()),
        total_parameters=sum(tensor.parameters for tensor in tensors.values()),
        commit=commit or (snapshot.commit if snapshot else None),
        file_sizes=MappingProxyType(contents.sizes),
        metadata=MappingProxyType(metadata),
    )


def _check_names(folder: Path) -> None:
    """Check that the names in a folder are those of a model folder, without a look into its subfolders."""
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries]
    except OSError as error:
        raise CheckpointError(f"the model folder cannot be read: {error}") from error
    if CONFIG_NAME not in names or (folder / CONFIG_NAME).is_dir():
        raise _no_config(folder, names)
    if SINGLE_NAME not in names and INDEX_NAME not in names:
        raise no_weights_error(folder, names)


def _no_config(folder: Path, names: list[str]) -> CheckpointError:
    if "adapter_config.json" in names:
        return adapter_error(folder)
    if any(name.lower().endswith(".gguf") for name in names):
        return no_weights_error(folder, names)
    inside = [name for name in names if holds_model(folder / name)]
    hint = "Give the folder with config.json and the safetensors files, or a hub id."
    return CheckpointError(
        f"the folder {absolute_path(folder).name or folder} has no {CONFIG_NAME}, so it is not a Hugging Face model "
        "folder",
        hint=f"Give one of the models in it: {quoted_list(inside)}." if inside else hint,
    )


def _weight_map(index: dict[str, Any]) -> dict[str, str]:
    """The shard of every tensor from the index, after checks that all shards lie in the folder."""
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{INDEX_NAME} has no weight_map from tensor names to files")
    for name, shard in weight_map.items():
        try:
            safe_relative(shard)
        except CheckpointError as error:
            raise CheckpointError(f"{INDEX_NAME}, tensor {quote(name)}: {error.message}", hint=error.hint) from error
        if not shard.endswith(".safetensors"):
            raise CheckpointError(f"{INDEX_NAME} puts tensor {quote(name)} in {quote(shard)}, not a safetensors file")
    return weight_map


def _shards(folder: Path, contents: FolderContents, weight_map: dict[str, str] | None) -> tuple[str, ...]:
    if weight_map is None:
        if SINGLE_NAME not in contents.sizes:
            raise no_weights_error(folder, contents.sizes)
        return (SINGLE_NAME,)
    shards = tuple(sorted(set(weight_map.values())))
    if SINGLE_NAME in contents.sizes and shards != (SINGLE_NAME,):
        # transformers loads the single file and would silently ignore all other tensors of the index.
        raise CheckpointError(
            f"the folder has both {SINGLE_NAME} and an index with other shards; programs disagree on which to load",
            hint=f"Remove {SINGLE_NAME} or {INDEX_NAME}, whichever does not belong to the model.",
        )
    missing = [shard for shard in shards if shard not in contents.sizes]
    if missing:
        raise CheckpointError(
            f"{INDEX_NAME} names {_few(missing)}, missing from the folder", hint="Download the missing shards."
        )
    return shards


def _read_shards(folder: Path, shards: tuple[str, ...]) -> tuple[dict[str, TensorInfo], dict[str, dict[str, str]]]:
    tensors: dict[str, TensorInfo] = {}
    metadata: dict[str, dict[str, str]] = {}
    for shard in shards:
        found, metadata[shard] = read_header(folder / shard, shard=shard)
        twice = found.keys() & tensors.keys()
        if twice:
            name = min(twice)
            raise CheckpointError(f"the tensor {quote(name)} is in two shards, {tensors[name].shard} and {shard}")
        tensors.update(found)
    if not tensors:
        raise CheckpointError(f"{_few(list(shards))} holds no tensors")
    return tensors, metadata


def _compare(weight_map: dict[str, str], tensors: dict[str, TensorInfo]) -> None:
    """Check that index and headers agree; a tensor that only one of them names would be lost on loading."""
    absent = sorted(name for name in weight_map if name not in tensors)
    if absent:
        raise CheckpointError(f"{INDEX_NAME} lists {_few(absent)}, which no shard holds")
    unlisted = sorted(name for name in tensors if name not in weight_map)
    if unlisted:
        raise CheckpointError(f"the shards hold {_few(unlisted)}, which {INDEX_NAME} does not list")
    for name, shard in weight_map.items():
        if tensors[name].shard != shard:
            raise CheckpointError(
                f"{INDEX_NAME} puts tensor {quote(name)} in {quote(shard)}, but it is in {tensors[name].shard}"
            )


def _few(names: list[str]) -> str:
    return ", ".join(quote(name) for name in names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
