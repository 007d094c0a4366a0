"""Fingerprints: everything that an output depends on, as two hashes: of the source, and of the work done on it.

Names, paths and times are not hashed, so moved or copied models keep their fingerprints. Headers alone are not enough,
because a retrained model has the same headers, so a few bytes from the middle of every tensor are hashed too: one read
for each tensor, however large. A change of weights that leaves all these bytes unchanged is not noticed.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from typing import Any

from surgery.checkpoint import CONFIG_NAME, INDEX_NAME, Checkpoint, sha256_file, sha256_json
from surgery.errors import CheckpointError
from surgery.version import __version__

_SAMPLE = 256
# Of larger files beside the weights (copies for other programs) only the size and samples are hashed.
_WHOLE = 64_000_000


def source_fingerprint(checkpoint: Checkpoint) -> str:
    """SHA-256 over config, index, headers, a sample of each tensor, and all other files.

    Raises:
        CheckpointError: a file cannot be read, or was truncated meanwhile.
    """
    folder = checkpoint.folder
    digest = hashlib.sha256()
    for name in sorted({CONFIG_NAME, INDEX_NAME, *checkpoint.other_files} & checkpoint.file_sizes.keys()):
        size = checkpoint.file_sizes[name]
        if size <= _WHOLE:
            content = sha256_file(folder / name)
        else:
            content = _samples(folder / name, [(0, _SAMPLE), (size // 2, size // 2 + _SAMPLE), (size - _SAMPLE, size)])
        digest.update(sha256_json([name, size, content]).encode())
    for shard in checkpoint.shards:
        tensors = [tensor for tensor in checkpoint.tensors.values() if tensor.shard == shard]
        header = [[tensor.name, tensor.dtype, tensor.shape, tensor.begin, tensor.end] for tensor in tensors]
        middles = [(tensor.begin + tensor.nbytes // 2, tensor.end) for tensor in tensors]
        spans = [(begin, min(begin + _SAMPLE, end)) for begin, end in middles]
        content = _samples(folder / shard, spans)
        digest.update(sha256_json([shard, checkpoint.file_sizes[shard], header, content]).encode())
        digest.update(sha256_json(checkpoint.metadata[shard]).encode())
    return digest.hexdigest()


def work_fingerprint(
    operations: Sequence[Mapping[str, Any]], level: str, calibration: Mapping[str, Any] | None = None
) -> str:
    """SHA-256 over everything else that an output depends on, with the version of surgery.

    Args:
        operations: their options.
        level: of the verification.
        calibration: its settings and a hash of its texts; None if there is none.
    """
    content = {"operations": [dict(one) for one in operations], "verify": level, "tool": __version__}
    return sha256_json(content if calibration is None else {**content, "calibration": dict(calibration)})


def fingerprint(source: str, work: str) -> str:
    """The key of the ledger, from the fingerprints of source and work."""
    return sha256_json({"source": source, "work": work})


def _samples(path: Any, spans: Sequence[tuple[int, int]]) -> str:
    digest = hashlib.sha256()
    try:
        with path.open("rb", buffering=0) as file:
            for begin, end in spans:
                file.seek(begin, os.SEEK_SET)
                data = file.read(end - begin)
                if len(data) < end - begin:
                    raise CheckpointError(f"{path.name} is shorter than its header says")
                digest.update(data)
    except OSError as error:
        raise CheckpointError(f"{path.name} cannot be read: {error.strerror}") from error
    return digest.hexdigest()
