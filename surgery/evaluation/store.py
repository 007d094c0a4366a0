"""The results folder: finished parts as JSON, by model and suite; unfinished parts as JSON lines.

    FOLDER/<model>-<fingerprint>/<suite>/<kind>-<key>.json           a finished part
    FOLDER/<model>-<fingerprint>/<suite>/<kind>-<key>.partial.jsonl  one line for each finished unit

The key is the hash of everything that the numbers depend on: model, part, texts, dtype, backend. A finished part is
therefore always valid, and an interrupted run resumes after the last whole line.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from surgery.checkpoint import sha256_json
from surgery.checkpoint.locks import FileLock
from surgery.errors import UsageError

SCHEMA = 1
KIND = "measurement"
_HASH_LETTERS = 12
FOLDER_NAME = re.compile(rf"[A-Za-z0-9._-]+-[0-9a-f]{{{_HASH_LETTERS}}}")  # of one model's parts


class PartFile:
    """One part of one model in the results folder.

    Args:
        root: the results folder.
        identity: everything that the numbers depend on, as plain values; ``model``, ``name``, ``suite`` and ``kind``
            also name the file.
    """

    def __init__(self, root: Path, identity: Mapping[str, Any]) -> None:
        name = re.sub(r"[^A-Za-z0-9._-]", "-", str(identity["name"]).rsplit("/", 1)[-1])[:64] or "model"
        folder = root / f"{name}-{identity['model'][:_HASH_LETTERS]}" / identity["suite"]
        # The names of the folder and of the suite change no number.
        self.key = sha256_json({key: value for key, value in identity.items() if key not in ("name", "suite")})
        stem = f"{identity['kind']}-{self.key[:_HASH_LETTERS]}"
        self.path = folder / f"{stem}.json"
        self._partial = folder / f"{stem}.partial.jsonl"
        self._lock = FileLock(folder / f"{stem}.lock", f"the measurement {stem}")

    def finished(self) -> dict[str, Any] | None:
        """The finished part; None if it is not finished."""
        return read_measurement(self.path) if self.path.is_file() else None

    def start(self) -> dict[str, Any]:
        """Lock the part; returns the finished units of an interrupted run, by key.

        Raises:
            CheckpointError: another run measures it.
        """
        self._partial.parent.mkdir(parents=True, exist_ok=True)
        self._lock.acquire()
        done: dict[str, Any] = {}
        whole = 0
        if self._partial.is_file():
            for line in self._partial.read_bytes().splitlines(keepends=True):
                try:
                    entry = json.loads(line) if line.endswith(b"\n") else None
                except ValueError:
                    entry = None
                if entry is None:  # an incomplete last line
                    break
                done[entry["unit"]] = entry["values"]
                whole += len(line)
            os.truncate(self._partial, whole)
        return done

    def add(self, unit: str, values: Mapping[str, Any]) -> None:
        """Store a finished unit."""
        with self._partial.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"unit": unit, "values": values}, allow_nan=False) + "\n")

    def finish(self, content: Mapping[str, Any]) -> dict[str, Any]:
        """Write the finished part in one step, and remove the file of its units."""
        document = {"schema": SCHEMA, "kind": KIND, "key": self.key, **content}
        beside = self.path.with_suffix(".json.staged")
        with beside.open("w", encoding="utf-8") as file:
            file.write(json.dumps(document, allow_nan=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
        beside.replace(self.path)
        self._partial.unlink(missing_ok=True)
        return document

    def leave(self) -> None:
        """Unlock the part; does nothing if it is not locked."""
        self._lock.release()


def read_measurement(path: Path) -> dict[str, Any]:
    """A finished part.

    Raises:
        UsageError: the file is not a measurement, or has another schema.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(document, dict) or document.get("kind") != KIND:
        raise UsageError(f"{path} is not a measurement of `surgery evaluate`")
    if document.get("schema") != SCHEMA:
        raise UsageError(
            f"{path} has schema {document.get('schema')!r}; this version reads {SCHEMA}",
            hint="Measure again, or install the version of `surgery` that wrote it.",
        )
    return document
