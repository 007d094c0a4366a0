"""Update the code that travels in a converted checkpoint; its tensors stay as they are."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from surgery.anatomy.anatomy import MODEL_TYPE_PREFIX
from surgery.checkpoint import CONFIG_NAME, dump_json, load_config, load_json
from surgery.checkpoint.locks import FileLock
from surgery.checkpoint.record import HISTORY_NAME, PLAN_NAME
from surgery.checkpoint.source import check_folder
from surgery.conversion.code import code_records
from surgery.conversion.plan import CARD_NAME, FORMAT_VERSION
from surgery.conversion.records import read_plan, refresh_card
from surgery.errors import CheckpointError, PlanRefusedError
from surgery.operations.code import ENTRY_NAME, code_hashes, travelling_code
from surgery.result_table import ShownAsRecord
from surgery.version import __version__

REFRESH_STEP = "refresh"


@dataclass(frozen=True)
class RefreshResult(ShownAsRecord):
    """What was done.

    Attributes:
        model: name of the checkpoint.
        changed: whether anything was written; False if the code was this version's already.
        before, after: SHA-256 of modeling_surgery.py; ``before`` is None if there was none.
        tool_version: of this package.
        files: SHA-256 of each file of code, now.
        removed: files of code that surgery wrote earlier and that are no longer needed.
    """

    model: str
    changed: bool
    before: str | None
    after: str
    tool_version: str
    files: Mapping[str, str]
    removed: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """For its table."""
        return f"code of {self.model}"

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {**asdict(self), "removed": list(self.removed)}


def refresh(model: str | Path) -> RefreshResult:
    """Write this version's code into a converted checkpoint, and add that to its history and its card.

    Each file is replaced in one step, the one that config.json names last. The history is written first, so that it
    never misses a change. After a kill in between, the next refresh finishes the work. Files that surgery did not write
    stay.

    Args:
        model: folder of a converted checkpoint, also one that transformers saved.

    Raises:
        PlanRefusedError: not a converted checkpoint, or one in which no code travels.
        CheckpointError: it is of a newer format, or cannot be written.
    """
    folder = Path(model).expanduser()
    check_folder(folder)
    config = load_config(folder / CONFIG_NAME)
    _check(folder.name, config)
    code = travelling_code(_operation_names(folder.name, config))
    plan = read_plan(folder, check_hash=False) if (folder / PLAN_NAME).is_file() else None
    written = {item for record in code_records(folder, plan) for item in record.items()}
    present = {name: folder / name for name in code.keys() | dict(written).keys() if (folder / name).is_file()}
    before, after = code_hashes({name: path.read_bytes() for name, path in present.items()}), code_hashes(code)
    removed = tuple(sorted(name for name in before.keys() - after.keys() if (name, before[name]) in written))
    changed = bool(removed) or any(before.get(name) != value for name, value in after.items())
    entry_hashes = (before.get(ENTRY_NAME), after[ENTRY_NAME])
    result = RefreshResult(folder.name, changed, *entry_hashes, __version__, after, removed)
    lock = FileLock(folder / ".refresh.lock", folder.name)
    lock.acquire()
    try:
        if changed:
            _record(folder, result)
            for name in sorted(code, key=lambda name: (name == ENTRY_NAME, name)):
                if before.get(name) != after[name]:
                    _replace(folder / name, code[name])
            for name in removed:
                (folder / name).unlink()
        if plan is not None and (changed or not _card_lists(folder, after)):
            refresh_card(folder)
    except OSError as error:
        raise CheckpointError(f"{folder.name} cannot be written: {error.strerror or error}") from error
    finally:
        lock.release()
    return result


def _operation_names(name: str, config: Mapping[str, Any]) -> list[str]:
    operations = config["surgery"].get("operations")
    if not isinstance(operations, list) or not all(isinstance(options, Mapping) for options in operations):
        raise CheckpointError(f"{name}: config.json has no list of operations under `surgery`")
    return [str(options.get("name")) for options in operations]


def _check(name: str, config: Mapping[str, Any]) -> None:
    block = config.get("surgery")
    version = block.get("format_version") if isinstance(block, Mapping) else None
    if not isinstance(version, int):
        raise PlanRefusedError(
            f"{name}: not a converted checkpoint (its config.json has no block `surgery`)",
            hint="Give the folder that `surgery convert` or `finetune` wrote.",
        )
    if version > FORMAT_VERSION:
        raise CheckpointError(
            f"{name}: format version {version} is newer than this tool's {FORMAT_VERSION}",
            hint="Install a newer model-surgery.",
        )
    if not str(config.get("model_type")).startswith(MODEL_TYPE_PREFIX):
        raise PlanRefusedError(f"{name}: nothing to refresh: no code travels in it, and the family's own class runs it")


def _card_lists(folder: Path, files: Mapping[str, str]) -> bool:
    path = folder / CARD_NAME
    card = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    return all(value in card for value in files.values())


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
