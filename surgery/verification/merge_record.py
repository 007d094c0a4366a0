"""What mergekit recorded of a merge: the models in it, and whether their operations are the same."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from surgery.checkpoint import CONFIG_NAME, load_config, sha256_json
from surgery.conversion.card import describe
from surgery.errors import CheckpointError, VerificationError
from surgery.verification.checks import Check

MERGE_NAME = "mergekit_config.yml"
_LARGEST = 1_000_000
_START_VALUES = ("start", "calibration")


def check_operations_kept(folder: Path) -> None:
    """Nothing, unless a merge of a converted model wrote a folder without operations.

    Raises:
        VerificationError: config.json has no block ``surgery``, but a model in the merge has one.
    """
    if not (folder / MERGE_NAME).is_file() or load_config(folder / CONFIG_NAME).get("surgery") is not None:
        return
    converted = [name for name, operations in _merged(folder).items() if operations]
    if converted:
        raise VerificationError(
            f"{folder.name}: the merge dropped the operations of {converted[0]}: config.json has no block `surgery`, "
            "and the tensors of the operations are missing",
            hint="Merge checkpoints that were converted with the same plan, the base model included.",
        )


def merge_checks(folder: Path) -> list[Check]:
    """The models of a merge have the same operations with the same options; no check where nothing was merged."""
    name = "merged models have one plan"
    if not (folder / MERGE_NAME).is_file():
        return []
    merged = _merged(folder)
    own = _operations(folder)
    known = {path: operations for path, operations in merged.items() if operations is not None}
    for path, operations in known.items():
        if not operations:
            return [Check(name, "failed", f"{path} is in the merge and has no operation: its scales are missing")]
        if sha256_json(_meaning(operations)) != sha256_json(_meaning(own or [])):
            return [
                Check(
                    name,
                    "failed",
                    f"the form or the plan does not match: {path} has {_described(operations)}, the result has "
                    f"{_described(own or [])}; their learned parameters have different meanings",
                )
            ]
    if unknown := [path for path, operations in merged.items() if operations is None]:
        return [Check(name, "skipped", f"{unknown[0]} is in the merge and is no folder here, so its plan is not known")]
    return [Check(name, "passed", f"{len(known)} models")]


def _merged(folder: Path) -> dict[str, list[Any] | None]:
    """The models that a merge names, with the operations of each; None for a model that is no folder here."""
    from ruamel.yaml import YAMLError

    from surgery.schemas.yaml_text import untrusted_yaml

    path = folder / MERGE_NAME
    if path.stat().st_size > _LARGEST:
        raise CheckpointError(f"{folder.name}: {MERGE_NAME} is too large")
    try:
        content = untrusted_yaml().load(path.read_text(encoding="utf-8", errors="replace"))
    except (YAMLError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{folder.name}: {MERGE_NAME} is not YAML") from error
    return {_shown(name): _operations(Path(name)) for name in dict.fromkeys(_names(content))}


def _shown(name: str) -> str:
    """A name without the place on this machine, since a verification is recorded in the checkpoint."""
    return Path(name).name if Path(name).is_absolute() else name


def _names(content: Any) -> Iterator[str]:
    """The models in mergekit's configuration; a LoRA after ``+`` is left out."""
    if isinstance(content, Mapping):
        for key, value in content.items():
            if key in ("model", "base_model", "path") and isinstance(value, str):
                yield value.partition("+")[0]
            else:
                yield from _names(value)
    elif isinstance(content, list):
        for value in content:
            yield from _names(value)


def _operations(folder: Path) -> list[Any] | None:
    """The operations in the config.json of a folder; empty if it has none, None if there is no such folder."""
    if not (folder / CONFIG_NAME).is_file():
        return None
    block = load_config(folder / CONFIG_NAME).get("surgery")
    operations = block.get("operations") if isinstance(block, Mapping) else None
    return operations if isinstance(operations, list) else []


def _meaning(operations: list[Any]) -> list[dict[str, Any]]:
    """What the learned parameters depend on: the options without the values that they start with."""
    return [{key: value for key, value in one.items() if key not in _START_VALUES} for one in operations]


def _described(operations: list[Any]) -> str:
    return ", ".join(f"{options.get('name')} ({describe(options)})" for options in operations) or "no operation"
