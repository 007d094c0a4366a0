"""The identity of a measured model: a hash of the files that its numbers depend on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from surgery.checkpoint import Source, sha256_file, sha256_json

# Weights, config, tokenizer and code; not the card and the record of the conversion.
_PATTERNS = ("*.safetensors", "*.json", "*.model", "*.tiktoken", "*.jinja", "*.py", "merges.txt", "vocab.txt")


def model_fingerprint(source: Source, on_bytes: Callable[[int], None] | None = None) -> str:
    """SHA-256 over the names and contents of a model's files; two copies of a model have the same.

    Args:
        source: the model.
        on_bytes: called with the size of each chunk that is read.

    Raises:
        CheckpointError: a file cannot be read.
    """
    return sha256_json({path.name: sha256_file(path, on_bytes) for path in _files(source.folder)})


def fingerprint_bytes(source: Source) -> int:
    """Number of bytes that :func:`model_fingerprint` reads."""
    return sum(path.stat().st_size for path in _files(source.folder))


def _files(folder: Path) -> list[Path]:
    return sorted({path for pattern in _PATTERNS for path in folder.glob(pattern) if path.is_file()})
