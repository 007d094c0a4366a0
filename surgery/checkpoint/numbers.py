"""The values of tensors as numbers, without torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from surgery.checkpoint.folder import Checkpoint
from surgery.checkpoint.hashes import tensor_bytes
from surgery.errors import CheckpointError

if TYPE_CHECKING:
    import numpy

_FLOATS = {"F64": "<f8", "F32": "<f4", "F16": "<f2"}
_AT_ONCE = 2**24  # bytes, a multiple of every size of a number


def read_numbers(checkpoint: Checkpoint, name: str) -> numpy.ndarray:
    """The values of one tensor of floating-point numbers, flat.

    Raises:
        CheckpointError: the tensor is missing, or holds no floating-point numbers of a usual kind.
    """
    info = checkpoint.tensors.get(name)
    if info is None:
        raise CheckpointError(f"{checkpoint.folder.name}: the tensor {name!r} is missing")
    with tensor_bytes(checkpoint.folder / info.shard, info) as raw:
        found = _numbers(bytes(raw), info.dtype)
    if found is None:
        raise CheckpointError(f"{checkpoint.folder.name}: {name} is {info.dtype}, and no floating-point number")
    return found


def first_not_finite(checkpoint: Checkpoint) -> str | None:
    """The name of the first tensor with a value that is not finite; None if all are. Reads every byte of the weights.

    Tensors without floating-point numbers, or with those of a quantized kind, are not looked at.
    """
    import numpy

    for name, info in checkpoint.tensors.items():
        with tensor_bytes(checkpoint.folder / info.shard, info) as raw:
            for start in range(0, len(raw), _AT_ONCE):
                found = _numbers(bytes(raw[start : start + _AT_ONCE]), info.dtype)
                if found is None:
                    break
                if not numpy.isfinite(found).all():
                    return name
    return None


def _numbers(raw: bytes, dtype: str) -> numpy.ndarray | None:
    import numpy

    if dtype == "BF16":  # the upper half of a float32
        return (numpy.frombuffer(raw, dtype="<u2").astype("<u4") << 16).view("<f4")
    return numpy.frombuffer(raw, dtype=_FLOATS[dtype]) if dtype in _FLOATS else None
