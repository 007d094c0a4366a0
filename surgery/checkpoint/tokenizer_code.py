"""Code that a tokenizer brings, as ``auto_map`` of tokenizer_config.json names it, or that of an older config.json."""

from pathlib import Path

from surgery.checkpoint.strict_json import load_config
from surgery.errors import CheckpointError


def tokenizer_code(folder: Path) -> str | None:
    """The file of code that a tokenizer's config names; None if it names none or cannot be read.

    The file may be missing: code is not downloaded from the hub. transformers runs it only with
    ``trust_remote_code=True``, and needs it unless it has a class of its own for the tokenizer.
    """
    for config in ("tokenizer_config.json", "config.json"):
        try:
            auto_map = load_config(folder / config).get("auto_map") if (folder / config).is_file() else None
        except CheckpointError:
            continue
        named = auto_map.get("AutoTokenizer") if isinstance(auto_map, dict) else auto_map
        classes = named if isinstance(named, list) else [named]
        for name in classes:
            if isinstance(name, str) and "." in name:
                return name.rpartition("--")[2].partition(".")[0] + ".py"
    return None
