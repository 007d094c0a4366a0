"""Restore the source of a converted checkpoint, byte for byte."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from surgery.checkpoint import (
    CONFIG_NAME,
    INDEX_NAME,
    BackgroundHasher,
    StagedFolder,
    load_json,
    open_checkpoint,
    place_file,
    require_space,
    safe_relative,
)
from surgery.checkpoint.record import RECORD_FOLDER, SHARDS_NAME
from surgery.conversion.execution import PlaceMode, Progress, adding_up
from surgery.conversion.external_save import is_saved_externally
from surgery.conversion.plan import CARD_NAME
from surgery.conversion.records import read_plan, trained_weights
from surgery.errors import CheckpointError, PlanRefusedError
from surgery.result_table import ShownAsRecord


@dataclass(frozen=True)
class RevertResult(ShownAsRecord):
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

    @property
    def title(self) -> str:
        """For its table."""
        return f"the source in {self.output}"

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "output": str(self.output),
            "files": self.files,
            "placed": dict(self.placed),
            "compared": list(self.compared),
        }


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
    plan, restored = read_plan(folder), restored_files(folder)
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
    """SHA-256 of the shards as the conversion recorded them; empty if it read no shard."""
    if not (folder / SHARDS_NAME).is_file():
        return {}
    hashes = load_json(folder / SHARDS_NAME).get("sha256")
    if not isinstance(hashes, dict) or not all(isinstance(value, str) for value in hashes.values()):
        raise CheckpointError(f"{folder.name}: {SHARDS_NAME} has no hashes")
    return hashes


def _check_same(name: str, found: str, recorded: str) -> None:
    if found != recorded:
        raise CheckpointError(
            f"{name} is not as converted (sha256 {found[:16]}, then {recorded[:16]}), so the source cannot be restored",
            hint="The file was changed or damaged since. Fetch the source again.",
        )


def restored_files(folder: Path) -> dict[str, str]:
    """The files of the source in a converted checkpoint: name there -> name in the source.

    Raises:
        PlanRefusedError: not a converted checkpoint, or the source is no longer in it.
        CheckpointError: files that the plan names are missing.
    """
    plan = read_plan(folder)
    if is_saved_externally(folder):
        base = plan["source"]
        named = base["hub_id"] or base["name"]
        raise PlanRefusedError(
            f"{folder.name}: another program saved it, and kept neither the files of the source nor their hashes, so "
            "the source cannot be restored from it",
            hint=f"Its source is {named}"
            + (f" at commit {base['commit']}" if base["commit"] else "")
            + ". Get the source again, or revert the folder that `surgery convert` wrote.",
        )
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
        raise CheckpointError(f"{folder.name}: {required[0]} is missing, so the source cannot be restored")
    return {name: target for name, target in files.items() if name not in missing}
