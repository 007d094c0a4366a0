"""Give the source of a converted checkpoint back, byte for byte."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from surgery.checkpoint import (
    CONFIG_NAME,
    INDEX_NAME,
    BackgroundHasher,
    StagedFolder,
    load_config,
    load_json,
    open_checkpoint,
    place_file,
    require_space,
    safe_relative,
    sha256_json,
)
from surgery.checkpoint.record import HISTORY_NAME, PLAN_NAME, RECORD_FOLDER, SHARDS_NAME, check_format_version
from surgery.checkpoint.source import check_folder
from surgery.checkpoint.unsupported_weights import adapter_error
from surgery.conversion.execution import PlaceMode, Progress, adding_up
from surgery.conversion.plan import CARD_NAME, Plan
from surgery.errors import CheckpointError, PlanRefusedError


@dataclass(frozen=True)
class RevertResult:
    """What was written.

    Attributes:
        output: where the source is again.
        files: how many files it has.
        placed: how each shard was placed (reflink, copied or linked), by its name there.
        compared: the shards whose bytes were read and are those that were converted.
    """

    output: Path
    files: int
    placed: Mapping[str, str]
    compared: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "output": str(self.output),
            "files": self.files,
            "placed": dict(self.placed),
            "compared": list(self.compared),
        }


def read_plan(folder: Path, *, check_hash: bool = True) -> dict[str, Any]:
    """The plan of a converted checkpoint.

    Args:
        folder: the converted checkpoint.
        check_hash: whether a plan that was changed afterwards is an error.

    Raises:
        PlanRefusedError: the folder was not converted by this tool.
        CheckpointError: the plan was changed afterwards, or is of a newer format; or the folder is an adapter.
    """
    check_folder(folder)
    if not (folder / PLAN_NAME).is_file():
        if (folder / "adapter_config.json").is_file():
            raise adapter_error(folder)
        raise PlanRefusedError(
            f"{folder.name}: not a converted checkpoint (it has no {PLAN_NAME})",
            hint="Give the folder that `surgery convert`, `finetune` or `merge` wrote.",
        )
    plan = load_json(folder / PLAN_NAME, limit=64_000_000)
    check_format_version(plan.get("format_version"), folder.name)
    if (folder / CONFIG_NAME).is_file():
        block = load_config(folder / CONFIG_NAME).get("surgery")
        check_format_version(block.get("format_version") if isinstance(block, dict) else None, folder.name)
    content = {name: value for name, value in plan.items() if name != "hash"}
    if check_hash and plan.get("hash") != sha256_json(content):
        raise CheckpointError(f"{folder.name}: {PLAN_NAME} does not have the hash that it names; it was changed")
    try:
        TypeAdapter(Plan).validate_python(content)
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"]))
        raise CheckpointError(f"{folder.name}: {PLAN_NAME} is not a plan: {where}: {problem['msg']}") from error
    return plan


def revert(
    model: str | Path,
    *,
    output: str | Path,
    mode: PlaceMode = "auto",
    force: bool = False,
    on_bytes: Progress | None = None,
) -> RevertResult:
    """Write the source of a converted checkpoint to ``output``.

    Scales that were trained are dropped; nothing else was changed by that. After the weights themselves were trained
    the source is no longer in the checkpoint, and the request is refused. Where the conversion has recorded what its
    shards were (with ``copy``, and of models in the hub cache), their bytes are compared, unless they are linked.

    Raises:
        PlanRefusedError: not a converted checkpoint, or its weights were trained.
        CheckpointError: files that the plan names are missing, or shards are not what was converted.
    """
    folder = Path(model).expanduser()
    plan = read_plan(folder)
    restored = _restored_files(folder, plan)
    open_checkpoint(folder)  # a broken checkpoint is refused before anything is written
    total = sum((folder / name).stat().st_size for name in restored)
    report = adding_up(on_bytes, total)
    hashes = {} if mode == "link" else _recorded_hashes(folder)
    placed: dict[str, str] = {}
    with (
        StagedFolder(Path(output), force=force, source=folder, known_files=restored.values()) as staged,
        BackgroundHasher() as following,
    ):
        require_space(staged.path, 0 if mode == "link" else total)
        for name, target in restored.items():
            is_shard = name in plan["shards"].values()
            on_piece = following.follow(folder / name, report) if is_shard and name in hashes else report
            how = place_file(folder / name, staged.path / target, mode if is_shard else "copy", on_piece)
            if is_shard:
                placed[target] = how
        read = following.results()
        for path, found in read.items():
            _check_same(f"{folder.name}: {path.name}", found, hashes[path.relative_to(folder).as_posix()])
        staged.commit()
    compared = tuple(target for name, target in restored.items() if folder / name in read)
    return RevertResult(Path(output), len(restored), placed, compared)


def _recorded_hashes(folder: Path) -> dict[str, str]:
    """What the conversion has recorded of its shards; empty where it read none of them."""
    if not (folder / SHARDS_NAME).is_file():
        return {}
    hashes = load_json(folder / SHARDS_NAME).get("sha256")
    if not isinstance(hashes, dict) or not all(isinstance(value, str) for value in hashes.values()):
        raise CheckpointError(f"{folder.name}: {SHARDS_NAME} has no hashes")
    return hashes


def _check_same(name: str, found: str, recorded: str) -> None:
    if found != recorded:
        raise CheckpointError(
            f"{name} is not what was converted (sha256 {found[:16]}, then {recorded[:16]}), so the source cannot be "
            "given back.",
            hint="The file was changed or damaged since. Take the source from where it came from.",
        )


def _restored_files(folder: Path, plan: dict[str, Any]) -> dict[str, str]:
    """Name in the converted checkpoint -> name in the source."""
    record = f"{RECORD_FOLDER}/source"
    files = {name: shard for shard, name in plan["shards"].items()}
    files |= {name: name for name in plan["kept_files"]}
    files |= {f"{record}/{name}": name for name in (CONFIG_NAME, INDEX_NAME, CARD_NAME, *plan.get("source_record", ()))}
    for name in [*files, *files.values()]:
        safe_relative(name)
    trained = trained_weights(folder)
    missing = [name for name in files if not (folder / name).is_file()]
    optional = (f"{record}/{INDEX_NAME}", f"{record}/{CARD_NAME}")
    required = [name for name in missing if name not in optional]
    if trained or any(name in plan["shards"].values() for name in required):
        raise PlanRefusedError(
            f"{folder.name}: its weights were trained ({trained or 'the source shards are gone'}), "
            "so the source is no longer in it",
            hint="Revert the converted checkpoint from before the training, or fetch the source again.",
        )
    if required:
        raise CheckpointError(f"{folder.name}: {required[0]} is missing, so the source cannot be given back whole")
    return {name: target for name, target in files.items() if name not in missing}


def read_history(folder: Path) -> list[dict[str, Any]]:
    """The trainings that a converted checkpoint went through, oldest first; empty if there were none.

    Raises:
        CheckpointError: there is a history, and it cannot be read.
    """
    history = folder / HISTORY_NAME
    if not history.is_file():
        return []
    entries = load_json(history).get("entries")
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise CheckpointError(f"{HISTORY_NAME} has no list of entries, so what was trained is not known")
    return [entry for entry in entries if entry.get("step") != "refresh"]


def trained_weights(folder: Path) -> str | None:
    """What was trained besides the operations' own parameters, from the checkpoint's history; None if nothing.

    Raises:
        CheckpointError: there is a history, and it cannot be read.
    """
    trained = [str(entry.get("trained")) for entry in read_history(folder) if entry.get("trained") != "scale"]
    return ", ".join(trained) or None
