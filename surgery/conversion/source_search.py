"""The source of a converted checkpoint, as far as it is still where it was."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from surgery.checkpoint import CONFIG_NAME, load_json
from surgery.checkpoint.record import PLAN_NAME, RECORD_FOLDER


def find_source(folder: Path, beside: Iterable[Path] = ()) -> str | None:
    """The source that a converted checkpoint was made of: its hub id, or a folder that has the recorded config.json.

    A record has the name of a folder and no path, so the folder is searched for by its name.

    Args:
        folder: the converted checkpoint.
        beside: other paths that may be the source, or beside which it may lie.

    Returns:
        None if no such folder is found.
    """
    config_then = folder / RECORD_FOLDER / "source" / CONFIG_NAME
    if not (folder / PLAN_NAME).is_file() or not config_then.is_file():
        return None  # another program saved it
    source = load_json(folder / PLAN_NAME, limit=64_000_000).get("source")
    if not isinstance(source, dict):
        return None
    recorded = config_then.read_bytes()
    if source.get("hub_id"):
        return str(source["hub_id"])
    name = str(source.get("name"))
    places = [folder.parent / name, *(path for given in beside for path in (given, given.parent / name)), Path(name)]
    for place in places:
        config = place / CONFIG_NAME
        if config.is_file() and config.read_bytes() == recorded:
            return str(place)
    return None
