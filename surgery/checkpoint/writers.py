"""Writers of safetensors files, their index, and JSON; the same input gives the same bytes."""

import contextlib
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from surgery.checkpoint.disk import fsync_file
from surgery.checkpoint.headers import DTYPE_BITS, MAX_HEADER_BYTES, TensorInfo, read_header, tensor_bits
from surgery.checkpoint.names import quote, safe_relative
from surgery.checkpoint.strict_json import dump_json
from surgery.errors import CheckpointError

_ALIGNMENT = 8


@dataclass(frozen=True)
class NewTensor:
    """A tensor to write.

    Attributes:
        dtype: in the spelling of safetensors.
        shape: its dimensions.
        data: its bytes, little-endian.
    """

    dtype: str
    shape: tuple[int, ...]
    data: bytes

    def __post_init__(self) -> None:
        bits = tensor_bits(self.dtype, self.shape)
        if bits <= 0 or bits != len(self.data) * 8:
            raise CheckpointError(
                f"a tensor of dtype {self.dtype} and shape {list(self.shape)} needs {bits / 8:g} bytes "
                f"and at least one element; {len(self.data)} bytes were given"
            )


def write_safetensors(
    path: Path, tensors: Mapping[str, NewTensor], metadata: Mapping[str, str] | None = None
) -> dict[str, TensorInfo]:
    """Write a new safetensors file, and return its tensors as read back from the header.

    Tensors are ordered by dtype, the widest first, then by name, which aligns every tensor (the order of safetensors).

    Raises:
        CheckpointError: there are no tensors, a name is not valid, or the file cannot be written (it exists).
    """
    if not tensors:
        raise CheckpointError(f"{path.name} would contain no tensors")
    names = sorted(tensors, key=lambda name: (-DTYPE_BITS[tensors[name].dtype], name))
    header: dict[str, Any] = {}
    if metadata:
        header["__metadata__"] = {key: metadata[key] for key in sorted(metadata)}
    begin = 0
    for name in names:
        if name == "__metadata__" or not name.isprintable():
            raise CheckpointError(f"{quote(name)} cannot be the name of a tensor")
        tensor = tensors[name]
        end = begin + len(tensor.data)
        header[name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    if len(text) > MAX_HEADER_BYTES:
        raise CheckpointError(f"the header of {path.name} would have {len(text):,} bytes, more than the format allows")
    try:
        # "x": an existing name could be a link to another file.
        with path.open("xb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            for name in names:
                file.write(tensors[name].data)
    except OSError as error:
        raise CheckpointError(f"{path.name} cannot be written: {error.strerror}") from error
    return read_header(path)[0]


def write_index(
    path: Path, weight_map: Mapping[str, str], total_size: int, *, metadata: Mapping[str, Any] | None = None
) -> None:
    """Write a ``model.safetensors.index.json``: sorted tensor names, `total_size` in bytes, further `metadata`.

    Raises:
        CheckpointError: the name of a shard leaves the folder, or the file cannot be written (it exists).
    """
    for shard in set(weight_map.values()):
        safe_relative(shard)
    document = {
        "metadata": {**(metadata or {}), "total_size": total_size},
        "weight_map": {name: weight_map[name] for name in sorted(weight_map)},
    }
    write_json(path, document)


def write_json(path: Path, obj: Any) -> None:
    """Write a new JSON file in the form of `dump_json`, with the same line ends on every platform.

    Raises:
        CheckpointError: the file cannot be written (it exists).
        ValueError: `obj` contains NaN or Infinity.
    """
    try:
        with path.open("xb") as file:
            file.write(dump_json(obj).encode())
    except OSError as error:
        raise CheckpointError(f"{path.name} cannot be written: {error.strerror}") from error


def replace_file(path: Path, data: bytes) -> None:
    """Replace or create a file atomically: a reader finds the old or the new content, even after a kill.

    Raises:
        CheckpointError: the file cannot be written; its old content is kept.
    """
    # Always the same name, so that the next run removes what a kill left.
    beside = path.with_name(f".{path.name}.partial")
    try:
        beside.unlink(missing_ok=True)
        with beside.open("xb") as file:
            file.write(data)
        fsync_file(beside)
        beside.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)
        raise CheckpointError(f"{path.name} cannot be written: {error.strerror}") from error
