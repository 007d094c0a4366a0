"""The source of a model: a folder on disk, or a repository of the Hugging Face hub."""

import re
from dataclasses import dataclass
from pathlib import Path

from surgery.checkpoint.hub_cache import snapshot_of
from surgery.checkpoint.hub_client import limit_silence
from surgery.checkpoint.hub_errors import download_error
from surgery.checkpoint.names import quote
from surgery.checkpoint.near_folders import did_you_mean, nearest_folder
from surgery.errors import CheckpointError, UsageError

# The files of a model folder. Code (.py) is not downloaded, because code of a source is never run.
ALLOW_PATTERNS = (
    "*.safetensors",
    "*.json",
    "*.txt",
    "*.model",
    "*.jinja",
    "*.tiktoken",
    "*.md",
    *("LICENSE*", "LICENCE*", "license*", "NOTICE*", "USE_POLICY*", ".gitattributes"),
)
# Copies of the weights for other programs.
IGNORE_PATTERNS = ("original/*", "consolidated*.safetensors", "onnx/*", "openvino/*", "coreml/*")

_HUB_ID = re.compile(r"(?:[A-Za-z0-9_][\w.-]*/)?[A-Za-z0-9_][\w.-]{0,95}", re.ASCII)
_REVISION = re.compile(r"[A-Za-z0-9_][\w./+-]{0,254}", re.ASCII)


@dataclass(frozen=True)
class Source:
    """A model on disk.

    Attributes:
        folder: the model folder.
        name: for messages and records: the hub id, or the name of the folder; never a path.
        commit: of the hub repository; None if unknown.
        hub_id: of the hub repository; None for other folders.
    """

    folder: Path
    name: str
    commit: str | None
    hub_id: str | None


def resolve(
    model: str | Path, revision: str | None = None, *, local_only: bool = False, is_hub_id: bool = False
) -> Source:
    """Find a model: an existing folder is used as it is, a hub id is downloaded.

    A name without a slash that is nearly the name of a model folder beside it is taken for a mistyped folder, and the
    hub is not asked; with `is_hub_id` no folder is looked at.

    HF_HOME, HF_TOKEN and HF_HUB_OFFLINE are respected; with `local_only` only the cache is used, without requests. A
    folder that is a snapshot in the hub cache gets the id and commit of its repository.

    Raises:
        UsageError: `model` is neither a folder nor a hub id; `revision` is malformed, unknown or given for a folder.
        CheckpointError: there is no such folder, or the model cannot be downloaded (offline, gated, not found).
    """
    text = str(model)
    folder = _expand(text)
    if not is_hub_id and text and _exists(folder):  # an empty argument is an error, not the current folder
        if revision is not None:
            raise UsageError(
                f"{quote(text)} is a folder, and a folder has no revision {quote(revision)}",
                hint="Leave --revision out, or give a hub id.",
            )
        return _local(folder)
    if _is_path_like(text):
        check_folder(folder, or_hub_id=True)
    if not _HUB_ID.fullmatch(text) or ".." in text or "--" in text or text.endswith((".git", ".", "-")):
        raise UsageError(
            f"{quote(text)} is neither an existing folder nor a hub id",
            hint=did_you_mean(text)
            + "A hub id has the form org/name. For a folder, check the spelling, or start with ./.",
        )
    if revision is not None and (not _REVISION.fullmatch(revision) or ".." in revision):
        raise UsageError(f"{quote(revision)} is not a valid revision", hint="Give a branch, a tag or a commit.")
    if "/" not in text and revision is None and not is_hub_id:
        _check_not_mistyped(text)
    return _fetch(text, revision, local_only=local_only)


def _check_not_mistyped(name: str) -> None:
    near = nearest_folder(name, models_only=True)
    if near is not None:
        raise CheckpointError(
            f"there is no folder {quote(name)}",
            hint=f"Did you mean {quote(near)}? For a model of the hub give the full id, org/name.",
        )


def check_folder(folder: Path, *, or_hub_id: bool = False) -> None:
    """Check that a model folder exists.

    Args:
        folder: as the user gave it.
        or_hub_id: whether a hub id is also allowed.

    Raises:
        CheckpointError: it does not exist, is not a folder, or an interrupted replacement moved it aside.
    """
    if not _exists(folder):
        aside = _moved_aside(folder)
        hint = "Check the spelling. A folder is required here; nothing is downloaded from the hub."
        if or_hub_id:
            hint = "Check the spelling. A hub id has the form org/name."
        hint = did_you_mean(str(folder)) + hint
        if aside is not None:
            hint = (
                f"A replacement of this folder was interrupted; the old folder is now {aside.name}. Run the same "
                "command again, or rename the old folder back."
            )
        raise CheckpointError(f"there is no folder {quote(str(folder))}", hint=hint)
    if not folder.is_dir():
        raise CheckpointError(f"{quote(str(folder))} is not a folder", hint="Give the model folder, not a file in it.")


def _expand(text: str) -> Path:
    try:
        return Path(text).expanduser()
    except (RuntimeError, ValueError):  # ~nobody, a NUL
        return Path(text)


def _exists(folder: Path) -> bool:
    try:
        return folder.exists()
    except (OSError, ValueError):  # too long, a NUL, no permission
        return False


def _moved_aside(folder: Path) -> Path | None:
    try:
        siblings = sorted(folder.resolve().parent.iterdir())
    except (OSError, ValueError, RuntimeError):
        return None
    return next((path for path in siblings if path.name.startswith(f"{folder.name}.replaced-")), None)


def _is_path_like(text: str) -> bool:
    return text.startswith(("./", "../", "/", "~")) or text in (".", "..") or text.count("/") > 1 or "\\" in text


def _local(folder: Path) -> Source:
    check_folder(folder)
    snapshot = snapshot_of(folder)
    if snapshot is not None:
        return Source(folder, snapshot.hub_id, snapshot.commit, snapshot.hub_id)
    return Source(folder, absolute_path(folder).name or "model", None, None)


def absolute_path(folder: Path) -> Path:
    """The absolute path of a folder. Links are not resolved, except if the path contains ``..``."""
    return folder.resolve() if ".." in folder.parts else folder.absolute()


def _fetch(hub_id: str, revision: str | None, *, local_only: bool) -> Source:
    import huggingface_hub  # takes 0.25 s, and only hub ids need it

    limit_silence()
    try:
        fetched = huggingface_hub.snapshot_download(
            hub_id,
            revision=revision,
            local_files_only=local_only,
            allow_patterns=list(ALLOW_PATTERNS),
            ignore_patterns=list(IGNORE_PATTERNS),
        )
    except Exception as error:  # the hub client raises its own, its HTTP library's and the system's errors
        failed = download_error(error, hub_id, revision)
        failed.hint = did_you_mean(hub_id) + (failed.hint or "")
        raise failed from error
    folder = Path(fetched)
    snapshot = snapshot_of(folder)
    return Source(folder, hub_id, snapshot.commit if snapshot else None, hub_id)
