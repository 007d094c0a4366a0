"""Bring the code that travels in a converted checkpoint to the current version; the tensors are not touched."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from surgery.anatomy.reading import MODEL_TYPE_PREFIX
from surgery.checkpoint import CONFIG_NAME, dump_json, load_config, load_json
from surgery.checkpoint.locks import FileLock
from surgery.checkpoint.record import HISTORY_NAME
from surgery.checkpoint.source import check_folder
from surgery.conversion.execution import modeling_code
from surgery.conversion.plan import FORMAT_VERSION, MODELING_NAME
from surgery.errors import CheckpointError, PlanRefusedError
from surgery.version import __version__

REFRESH_STEP = "refresh"


@dataclass(frozen=True)
class RefreshResult:
    """What was done.

    Attributes:
        model: name of the checkpoint.
        changed: whether the file was written; false where it was this version's already.
        before, after: SHA-256 of the modelling file; ``before`` is None where there was none.
        tool_version: of this package.
    """

    model: str
    changed: bool
    before: str | None
    after: str
    tool_version: str

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def refresh(model: str | Path) -> RefreshResult:
    """Write this version's modelling file into a converted checkpoint, and add that to its history.

    The file is replaced in one step: a kill leaves the old one or the new one. The history is written first, so that
    what was done is never missing from it.

    Args:
        model: folder of a converted checkpoint, also one that transformers saved.

    Raises:
        PlanRefusedError: not a converted checkpoint, or one in which no code travels.
        CheckpointError: it is of a newer format, or cannot be written.
    """
    folder = Path(model).expanduser()
    check_folder(folder)
    _check(folder.name, load_config(folder / CONFIG_NAME))
    code = modeling_code()
    path = folder / MODELING_NAME
    after = hashlib.sha256(code).hexdigest()
    before = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None
    result = RefreshResult(folder.name, before != after, before, after, __version__)
    if not result.changed:
        return result
    lock = FileLock(folder / ".refresh.lock", folder.name)
    lock.acquire()
    try:
        _record(folder, result)
        _replace(path, code)
    except OSError as error:
        raise CheckpointError(f"{folder.name} cannot be written: {error.strerror or error}.") from error
    finally:
        lock.release()
    return result


def _check(name: str, config: Mapping[str, Any]) -> None:
    block = config.get("surgery")
    version = block.get("format_version") if isinstance(block, Mapping) else None
    if not isinstance(version, int):
        raise PlanRefusedError(f"{name}: not a converted checkpoint (its config.json has no block `surgery`)")
    if version > FORMAT_VERSION:
        raise CheckpointError(
            f"{name}: format version {version} is newer than this tool's {FORMAT_VERSION}",
            hint="Install a newer model-surgery.",
        )
    if not str(config.get("model_type")).startswith(MODEL_TYPE_PREFIX):
        raise PlanRefusedError(f"{name}: nothing to refresh: no code travels in it, its own class is the right one")


def _record(folder: Path, result: RefreshResult) -> None:
    path = folder / HISTORY_NAME
    history = load_json(path) if path.is_file() else {"schema": 1, "entries": []}
    entries = history.get("entries")
    if not isinstance(entries, list):
        raise CheckpointError(f"{HISTORY_NAME} has no list of entries")
    entry = {"step": REFRESH_STEP, **{key: value for key, value in result.to_dict().items() if key != "model"}}
    if entries[-1:] == [entry]:
        return  # a run before this one was killed between the two files
    path.parent.mkdir(exist_ok=True)
    _replace(path, dump_json({**history, "entries": [*entries, entry]}).encode())


def _replace(path: Path, content: bytes) -> None:
    staged = path.with_name(f".{path.name}.partial")
    with staged.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    staged.replace(path)
