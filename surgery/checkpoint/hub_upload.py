"""Uploads of an output to the Hugging Face hub, in one commit."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from surgery.checkpoint.folder import CONFIG_NAME
from surgery.checkpoint.hub_client import limit_silence
from surgery.checkpoint.hub_errors import upload_error
from surgery.checkpoint.names import quote, quoted_list
from surgery.checkpoint.record import ENTRY_NAME, OWN_RECORDS, VERIFICATION_NAME
from surgery.checkpoint.source import check_folder
from surgery.checkpoint.strict_json import load_config
from surgery.errors import CheckpointError, UsageError
from surgery.result_table import ShownAsRecord

CARD_NAME = "README.md"
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9_][\w.-]{0,95}", re.ASCII)
_NOT_SENT = (".*", "*.partial")
_MADE_WITH_A_REPOSITORY = {".gitattributes"}


@dataclass(frozen=True)
class PushResult(ShownAsRecord):
    """An upload that is complete.

    Attributes:
        repository: hub id.
        url: of the repository.
        commit: of the upload; the earlier commit if nothing had changed.
        private: whether the repository is private.
    """

    repository: str
    url: str
    commit: str | None
    private: bool

    @property
    def title(self) -> str:
        """For its table."""
        return f"upload to {self.repository}"

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


@dataclass(frozen=True)
class PushPlan:
    """An upload that the hub would accept.

    Attributes:
        repository: hub id.
        exists: whether the repository exists; its contents are replaced then.
        private: whether a new repository is private.
        files: size in bytes of each file, by its name in the repository.
    """

    repository: str
    exists: bool
    private: bool
    files: dict[str, int]

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def check_owner(owner: str) -> None:
    """Ask the hub whether the token has write access to an account or organization.

    Raises:
        UsageError: the name is not valid.
        CheckpointError: the token is missing, wrong or has no write access, or the hub cannot be reached.
    """
    if not _REPOSITORY.fullmatch(f"{owner}/model"):
        raise UsageError(f"{quote(owner)} is not an account or organization", hint="Give the name alone, without /.")
    from huggingface_hub import HfApi

    limit_silence()
    try:
        account = HfApi().whoami()
    except Exception as error:  # the hub client raises its own, its HTTP library's and the system's errors
        raise upload_error(error, owner, asked_only=True) from error
    own = {str(account.get("name")), *(str(one.get("name")) for one in account.get("orgs") or ())}
    if owner.casefold() not in {name.casefold() for name in own}:
        raise CheckpointError(
            f"the account {account.get('name')!r} cannot write to {quote(owner)}",
            hint=f"It can write to {', '.join(sorted(own))}. Set HF_TOKEN to a token of another account otherwise.",
        )


def check_push(repository: str, *, force: bool = False) -> bool:
    """Ask the hub whether an upload is possible, without creating anything. A long run calls this first.

    Returns:
        Whether the repository exists.

    Raises:
        UsageError: the name is not valid; the repository holds something else, or an earlier output and ``force`` is
            not set.
        CheckpointError: the token is missing, wrong or has no write access, or the hub cannot be reached.
    """
    if not _REPOSITORY.fullmatch(repository) or ".." in repository or "--" in repository:
        raise UsageError(f"{quote(repository)} is not a hub id", hint="A hub id has the form NAME/MODEL.")
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    check_owner(repository.split("/", maxsplit=1)[0])
    try:
        found: Any = HfApi().model_info(repository)
    except RepositoryNotFoundError:
        return False
    except Exception as error:
        raise upload_error(error, repository, asked_only=True) from error
    files = {str(sibling.rfilename) for sibling in found.siblings or ()} - _MADE_WITH_A_REPOSITORY
    ours = bool(files & {*OWN_RECORDS, VERIFICATION_NAME, ENTRY_NAME})
    if files and not (ours and force):
        raise UsageError(
            f"the repository {repository} exists and holds {quoted_list(files)}"
            + (", an earlier output of surgery" if ours else ", which surgery did not write"),
            hint="Replace it with --force; its history is kept." if ours else "Choose another name.",
        )
    return True


def push(folder: str | Path, repository: str, *, private: bool = True, force: bool = False) -> PushResult:
    """Upload an output with its card to the hub.

    The repository is created if it does not exist. One commit holds all files. Repeat an interrupted upload: weights
    that were uploaded are not sent again.

    Args:
        folder: an output of ``convert``, ``finetune`` or ``merge``.
        repository: hub id, name/model.
        private: whether a new repository is private; an existing one is not changed.
        force: replace an earlier output of surgery in the repository.

    Raises:
        UsageError, CheckpointError: as :func:`check_push`; or the folder is not an output of surgery.
    """
    folder = Path(folder).expanduser()
    check_pushable(folder)
    check_push(repository, force=force)
    return upload(folder, repository, private=private, force=force)


def plan_push(folder: str | Path, repository: str, *, private: bool = True, force: bool = False) -> PushPlan:
    """Check an upload as :func:`push` does, and list what it would send. Uploads and creates nothing.

    Args:
        folder: an output of ``convert``, ``finetune`` or ``merge``.
        repository: hub id, name/model.
        private: whether a new repository would be private.
        force: replace an earlier output of surgery in the repository.

    Raises:
        UsageError, CheckpointError: as :func:`push`.
    """
    folder = Path(folder).expanduser()
    check_pushable(folder)
    exists = check_push(repository, force=force)
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    sent = {
        name: path.stat().st_size
        for name, path in files.items()
        if not any(fnmatch(name, pattern) for pattern in _NOT_SENT)
    }
    return PushPlan(repository, exists, private, sent)


def check_pushable(folder: Path) -> None:
    """Check the folder of an upload.

    Raises:
        UsageError: surgery did not write the folder.
        CheckpointError: it is not a model folder, or has no card.
    """
    check_folder(folder)
    recorded = any((folder / name).is_file() for name in OWN_RECORDS)
    if not recorded and not _has_operations(folder):
        raise UsageError(
            f"{quote(folder.name)} was not written by surgery and is not uploaded",
            hint="Give an output of `surgery convert`, `new`, `finetune` or `merge`.",
        )
    if not (folder / CARD_NAME).is_file():
        raise CheckpointError(
            f"{quote(folder.name)} has no card ({CARD_NAME})", hint="Run `surgery verify`, which writes the card."
        )


def _has_operations(folder: Path) -> bool:
    """Whether config.json has the block of a converted checkpoint, which stays when another program saves it."""
    return (folder / CONFIG_NAME).is_file() and bool(load_config(folder / CONFIG_NAME).get("surgery"))


def upload(folder: Path, repository: str, *, private: bool, force: bool) -> PushResult:
    """Upload a folder that was checked.

    Raises:
        CheckpointError: the hub rejects the upload or cannot be reached.
    """
    from huggingface_hub import HfApi

    limit_silence()
    api = HfApi()
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        done = api.upload_folder(
            folder_path=folder,
            repo_id=repository,
            commit_message="Upload with model-surgery",
            ignore_patterns=list(_NOT_SENT),
            delete_patterns="*" if force else None,
        )
        found = api.model_info(repository)
    except Exception as error:
        raise upload_error(error, repository) from error
    return PushResult(repository, f"{api.endpoint}/{repository}", done.oid or found.sha, bool(found.private))
