"""Folders with a name near that of a missing one, for messages."""

from pathlib import Path

from surgery.checkpoint.names import quote
from surgery.words import nearest

# A wrong, missing or doubled letter in a name of four leaves 0.75 or more.
_NEAR = 0.75
_MODEL_FILES = ("config.json", "adapter_config.json")


def nearest_folder(given: str, *, models_only: bool = False) -> str | None:
    """The folder beside a missing one whose name is nearest, spelled like `given`; None if no name is near.

    Args:
        given: the path of the missing folder.
        models_only: compare only folders that hold a model or an adapter.
    """
    try:
        folder = Path(given).expanduser()
        names = [path.name for path in folder.parent.iterdir() if not path.name.startswith(".") and path.is_dir()]
        if models_only:
            names = [name for name in names if holds_model(folder.parent / name)]
    except (OSError, ValueError, RuntimeError):  # no permission, a NUL, ~nobody
        return None
    found = nearest(folder.name, sorted(names), least=_NEAR)
    return None if found is None else str(Path(given).parent / found)


def holds_model(folder: Path) -> bool:
    """Whether a folder has the config of a model or of an adapter."""
    try:
        return any((folder / name).is_file() for name in _MODEL_FILES)
    except OSError:  # no permission
        return False


def did_you_mean(given: str) -> str:
    """The beginning of a hint for a missing folder: the nearest name, or nothing."""
    near = nearest_folder(given)
    return "" if near is None else f"Did you mean {quote(near)}? "
