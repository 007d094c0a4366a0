"""The header of a safetensors file: its tensors, and where their bytes lie.

Only the header is read, never the weights. Every rule of the format is checked, because a plan made from a wrong header
would be carried out on the wrong bytes.
"""

import os
import stat
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from surgery.checkpoint.names import quote
from surgery.checkpoint.strict_json import parse_json
from surgery.errors import CheckpointError

# https://github.com/huggingface/safetensors: the dtypes and the limit of its own reader.
DTYPE_BITS: dict[str, int] = {
    "BOOL": 8,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "U8": 8,
    "I8": 8,
    "F8_E5M2": 8,
    "F8_E4M3": 8,
    "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "C64": 64,
    "F64": 64,
    "I64": 64,
    "U64": 64,
}
# The dtypes of floating-point weights in the spelling of torch.
TORCH_DTYPES: dict[str, str] = {"F64": "float64", "F32": "float32", "BF16": "bfloat16", "F16": "float16"}
MAX_HEADER_BYTES = 100_000_000
_MOST_DIMENSIONS = 64
_MOST_ELEMENTS = 2**63 - 1
_LFS_POINTER = b"version https://git-lfs"


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor of a shard.

    Attributes:
        name: of the tensor.
        dtype: in the spelling of safetensors.
        shape: its dimensions; empty for a scalar.
        shard: name of the file, relative to the model folder.
        begin: offset of its first byte, from the start of the file.
        end: offset after its last byte.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    shard: str
    begin: int
    end: int

    @property
    def nbytes(self) -> int:
        """Size of the tensor in the file, in bytes."""
        return self.end - self.begin

    @property
    def parameters(self) -> int:
        """Number of elements; a scalar has one."""
        return count_elements(self.shape)


def count_elements(shape: tuple[int, ...]) -> int:
    """The product of the dimensions; stops early above the largest possible file."""
    total = 1
    for size in shape:
        total *= size
        if total > _MOST_ELEMENTS:
            break
    return total


def tensor_bits(dtype: str, shape: tuple[int, ...]) -> int:
    """Size of a tensor of this dtype and shape in a safetensors file, in bits.

    Raises:
        CheckpointError: safetensors does not have the dtype.
    """
    if dtype not in DTYPE_BITS:
        raise CheckpointError(f"unknown dtype {quote(dtype)}; safetensors knows {', '.join(DTYPE_BITS)}")
    return count_elements(shape) * DTYPE_BITS[dtype]


def read_header(path: Path, *, shard: str | None = None) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    """Read the header of a safetensors file: its tensors in the order of their bytes, and its metadata.

    `shard` is recorded in each `TensorInfo`; the default is the name of the file.

    Raises:
        CheckpointError: the file is missing, truncated or not safetensors; its header length is wrong; the JSON is
            broken, has duplicate keys or NaN; a dtype is unknown; a shape is negative, empty or huge; offsets
            overlap, leave gaps, exceed the file, do not cover all bytes, or disagree with dtype and shape.
    """
    shard = path.name if shard is None else shard
    header, start, size = _read_bytes(path, shard)
    entries = parse_json(header, f"The header of {shard}")
    metadata = _metadata(entries.pop("__metadata__", None), shard)
    tensors = [_tensor(name, entry, shard, start) for name, entry in entries.items()]
    tensors.sort(key=lambda tensor: (tensor.begin, tensor.end))
    _check_layout(tensors, shard, start, size)
    return {tensor.name: tensor for tensor in tensors}, metadata


def _read_bytes(path: Path, shard: str) -> tuple[bytes, int, int]:
    """The header's bytes, the offset at which the data starts, and the size of the file."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # opening a named pipe would wait forever
            raise CheckpointError(f"{shard} is not a regular file")
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            first = file.read(8)
            _check_length(first, size, shard, first + file.read(len(_LFS_POINTER) - 8))
            length = struct.unpack("<Q", first)[0]
            file.seek(8)
            header = file.read(length)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise CheckpointError(f"{shard} cannot be read: {reason}") from error
    if len(header) != length:
        raise CheckpointError(f"{shard} is truncated: its header should have {length:,} bytes, but has {len(header):,}")
    if not header.startswith(b"{"):
        raise CheckpointError(f"{shard} is not a safetensors file: its header does not start with '{{'")
    return header, 8 + length, size


def _check_length(first: bytes, size: int, shard: str, opening: bytes) -> None:
    if opening == _LFS_POINTER:
        raise CheckpointError(
            f"{shard} is a Git LFS pointer, not the weights", hint="Run `git lfs pull` in the model folder first."
        )
    if len(first) < 8:
        raise CheckpointError(f"{shard} is truncated: {size} bytes are too few for a safetensors file")
    length = struct.unpack("<Q", first)[0]
    if length > MAX_HEADER_BYTES:
        raise CheckpointError(
            f"{shard} announces a header of {length:,} bytes; the format allows {MAX_HEADER_BYTES:,}: "
            "it is not a safetensors file, or it is damaged"
        )
    if 8 + length > size:
        raise CheckpointError(f"{shard} announces a header of {length:,} bytes but has only {size:,} bytes in all")


def _metadata(value: Any, shard: str) -> dict[str, str]:
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise CheckpointError(f"{shard}: __metadata__ must map text to text")
    return value


def _tensor(name: str, entry: Any, shard: str, start: int) -> TensorInfo:
    where = f"{shard}: tensor {quote(name)}"
    if not name.isprintable():
        raise CheckpointError(f"{where} has a name that cannot be printed")
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise CheckpointError(f"{where} must have exactly dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise CheckpointError(f"{where} has the unknown dtype {quote(dtype)}")
    elements = _check_shape(shape, where)
    if not _are_counts(offsets) or len(offsets) != 2 or offsets[1] < offsets[0]:
        raise CheckpointError(f"{where} has the offsets {quote(offsets)}; they must be two ascending whole numbers")
    bits, given = elements * DTYPE_BITS[dtype], offsets[1] - offsets[0]
    if bits != given * 8:
        raise CheckpointError(
            f"{where} has {given:,} bytes, but dtype {dtype} and shape {quote(shape)} need {bits / 8:,g}"
        )
    return TensorInfo(name, dtype, tuple(shape), shard, start + offsets[0], start + offsets[1])


def _check_shape(shape: Any, where: str) -> int:
    """Check a shape and return its number of elements."""
    if not _are_counts(shape) or len(shape) > _MOST_DIMENSIONS:
        raise CheckpointError(
            f"{where} has the shape {quote(shape)}; it must be at most {_MOST_DIMENSIONS} whole numbers, none negative"
        )
    if 0 in shape:
        raise CheckpointError(f"{where} has no elements: its shape is {quote(shape)}")
    elements = count_elements(tuple(shape))
    if elements > _MOST_ELEMENTS:
        raise CheckpointError(f"{where} has the shape {quote(shape)}, more elements than any file can hold")
    return elements


def _are_counts(value: Any) -> bool:
    # bool is an int in Python, but `true` is not a size.
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def _check_layout(tensors: list[TensorInfo], shard: str, start: int, size: int) -> None:
    """Check that the tensors cover the data without gap or overlap; other bytes could not be checked."""
    expected = start
    for tensor in tensors:
        where = f"{shard}: tensor {quote(tensor.name)}"
        if tensor.end > size:
            raise CheckpointError(
                f"{where} ends at byte {tensor.end:,}, the file has {size:,}: it is truncated, or its header is wrong"
            )
        if tensor.begin < expected:
            raise CheckpointError(f"{where} overlaps the tensor before it by {expected - tensor.begin:,} bytes")
        if tensor.begin > expected:
            raise CheckpointError(f"{where} leaves a gap of {tensor.begin - expected:,} bytes before it")
        expected = tensor.end
    if expected != size:
        raise CheckpointError(f"{shard} has {size - expected:,} bytes after its last tensor")
