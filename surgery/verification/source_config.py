"""config.json of a converted checkpoint and of its source, compared key by key."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from surgery.anatomy import read_anatomy
from surgery.anatomy.config_locks import unlock
from surgery.checkpoint import CONFIG_NAME, Checkpoint, load_config
from surgery.checkpoint.record import RECORD_FOLDER
from surgery.conversion.config import config_after
from surgery.conversion.external_save import is_saved_externally
from surgery.conversion.options import parse_operation
from surgery.conversion.records import plan_value
from surgery.operations import OPERATIONS
from surgery.verification.checks import Check
from surgery.version import __version__

SOURCE_CHECK, OWN_CHECK = "the source's config.json", "config.json is the conversion's"
_MOST_NAMED = 5
# Keys that saving or training a model changes, and the operations themselves.
_SAVING = re.compile(
    r"(torch_)?dtype|transformers_version|_name_or_path|use_cache|.*_token_id|architectures|auto_map|model_type|surgery"
)


def config_checks(checkpoint: Checkpoint, plan: Mapping[str, Any], source: Checkpoint | None) -> list[Check]:
    """The given source has the config of the converted one, and config.json is what its conversion writes.

    Args:
        checkpoint: the converted folder.
        plan: its plan, as plain data.
        source: the folder it is compared with; None if there is none.
    """
    if is_saved_externally(checkpoint.folder):
        skipped = Check(OWN_CHECK, "skipped", "another program saved it")
        return [_common_check(checkpoint, source), skipped]
    recorded = _recorded_config(checkpoint)
    return [_source_check(recorded, source), _own_check(checkpoint, plan, recorded, source)]


def _recorded_config(checkpoint: Checkpoint) -> dict[str, Any] | None:
    path = checkpoint.folder / RECORD_FOLDER / "source" / CONFIG_NAME
    return load_config(path) if path.is_file() else None


def _source_check(recorded: Mapping[str, Any] | None, source: Checkpoint | None) -> Check:
    if source is None:
        return Check(SOURCE_CHECK, "skipped", "needs the source: pass --against")
    if recorded is None:
        return Check(SOURCE_CHECK, "failed", f"{RECORD_FOLDER}/source/{CONFIG_NAME} is missing")
    if found := list(differing_keys(recorded, source.config)):
        return Check(SOURCE_CHECK, "failed", f"the source differs from the converted one in {_named(found)}")
    return Check(SOURCE_CHECK, "passed", f"{len(source.config)} keys, as converted")


def _common_check(checkpoint: Checkpoint, source: Checkpoint | None) -> Check:
    """After another program saved config.json with all defaults: the keys that both files have."""
    if source is None:
        return Check(SOURCE_CHECK, "skipped", "needs the source: pass --against")
    own, expected, anatomy = unlock(checkpoint.config), dict(source.config), read_anatomy(source)
    for options in map(parse_operation, own["surgery"]["operations"]):
        expected |= OPERATIONS[options.name].config_changes(options, anatomy)
    common = {key: own[key] for key in own.keys() & expected.keys() if not _SAVING.fullmatch(key)}
    if found := list(differing_keys({key: expected[key] for key in common}, common)):
        return Check(SOURCE_CHECK, "failed", f"the source differs in {_named(found)}")
    return Check(SOURCE_CHECK, "passed", f"{len(common)} keys that both have are equal")


def _own_check(
    checkpoint: Checkpoint,
    plan: Mapping[str, Any],
    recorded: Mapping[str, Any] | None,
    source: Checkpoint | None,
) -> Check:
    before = recorded if recorded is not None else source.config if source is not None else None
    if before is None:
        return Check(OWN_CHECK, "skipped", "needs the source: pass --against")
    expected = config_after(before, plan_value(plan), read_anatomy(checkpoint).family)
    expected["surgery"]["plan_hash"] = plan.get("hash")  # of the file: an earlier version wrote fewer keys
    written = checkpoint.config
    if plan["tool_version"] != __version__:  # another version may have other locks
        expected, written = _unlocked(expected), _unlocked(written)
    if found := list(differing_keys(expected, written)):
        return Check(OWN_CHECK, "failed", f"the conversion writes another value of {_named(found)}")
    return Check(OWN_CHECK, "passed", f"{len(written)} keys")


def _unlocked(config: Mapping[str, Any]) -> dict[str, Any]:
    block = {key: value for key, value in dict(config.get("surgery") or {}).items() if key != "locks"}
    return {**unlock(config), "surgery": block}


def differing_keys(before: Any, after: Any, path: str = "") -> Iterator[str]:
    """The keys in which two values of JSON differ, as ``rope_parameters.rope_theta``; a list counts as one value."""
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        for key in sorted(before.keys() | after.keys()):
            below = f"{path}.{key}" if path else str(key)
            if key not in before or key not in after:
                yield below
            else:
                yield from differing_keys(before[key], after[key], below)
    elif json.dumps(before, sort_keys=True) != json.dumps(after, sort_keys=True):
        yield path


def _named(keys: list[str]) -> str:
    more = f" and {len(keys) - _MOST_NAMED} more" if len(keys) > _MOST_NAMED else ""
    return ", ".join(keys[:_MOST_NAMED]) + more
