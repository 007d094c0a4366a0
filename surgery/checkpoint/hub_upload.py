"""Uploading an output of this tool to the Hugging Face hub, whole: one commit holds all of it."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from surgery.checkpoint.hub_client import limit_silence
from surgery.checkpoint.hub_errors import upload_error
from surgery.checkpoint.names import quote, quoted_list
from surgery.checkpoint.record import HISTORY_NAME, PLAN_NAME
from surgery.checkpoint.source import check_folder
from surgery.errors import CheckpointError, UsageError

CARD_NAME = "README.md"
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9_][\w.-]{0,95}", re.ASCII)
_MADE_WITH_A_REPOSITORY = {".gitattributes"}


@dataclass(frozen=True)
class PushResult:
    """What was uploaded.

    Attributes:
        repository: its hub id.
        url: of the repository.
        commit: that holds the output; the one before where nothing had changed.
        private: whether the repository is.
    """

    repository: str
    url: str
    commit: str | None
    private: bool

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def check_owner(owner: str) -> None:
    """Ask the hub whether we may write to an account or organization.

    Raises:
        UsageError: no such name can be.
        CheckpointError: no token, a wrong one, no right to write there, or the hub cannot be reached.
    """
    if not _REPOSITORY.fullmatch(f"{owner}/model"):
        raise UsageError(f"{quote(owner)} is no account or organization.", hint="Give its name alone, without /.")
    from huggingface_hub import HfApi

    limit_silence()
    try:
        account = HfApi().whoami()
    except Exception as error:  # the hub client raises its own, its HTTP library's and the system's errors
        raise upload_error(error, owner, asked_only=True) from error
    own = {str(account.get("name")), *(str(one.get("name")) for one in account.get("orgs") or ())}
    if owner.casefold() not in {name.casefold() for name in own}:
        raise CheckpointError(
            f"The account {account.get('name')!r} cannot write to {quote(owner)}.",
            hint=f"It can to: {', '.join(sorted(own))}. Or set HF_TOKEN to a token of another account.",
        )


def check_push(repository: str, *, force: bool = False) -> None:
    """Ask the hub whether an upload could be done: the thing to do before hours of work. Nothing is made there.

    Raises:
        UsageError: no such name can be; the repository holds something else, or an earlier output without ``force``.
        CheckpointError: no token, a wrong one, no right to write there, or the hub cannot be reached.
    """
    if not _REPOSITORY.fullmatch(repository) or ".." in repository or "--" in repository:
        raise UsageError(f"{quote(repository)} is no hub id to push to.", hint="It has the form NAME/MODEL.")
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    check_owner(repository.split("/", maxsplit=1)[0])
    try:
        found: Any = HfApi().model_info(repository)
    except RepositoryNotFoundError:
        return
    except Exception as error:
        raise upload_error(error, repository, asked_only=True) from error
    files = {str(sibling.rfilename) for sibling in found.siblings or ()} - _MADE_WITH_A_REPOSITORY
    ours = bool(files & {PLAN_NAME, HISTORY_NAME})
    if files and not (ours and force):
        raise UsageError(
            f"The repository {repository} exists and holds {quoted_list(files)}"
            + (", an earlier output of this tool." if ours else ", which is no output of this tool."),
            hint="Replace it with --force; its history stays." if ours else "Choose another name.",
        )


def push(folder: str | Path, repository: str, *, private: bool = True, force: bool = False) -> PushResult:
    """Upload an output with its card to the hub.

    The repository is made where there is none. All files appear in one commit, or none; weights that an upload before
    this one has brought there are not sent again, so an interrupted one is simply repeated.

    Args:
        folder: what ``convert``, ``finetune`` or ``merge`` wrote.
        repository: hub id, name/model.
        private: whether a repository that is made here is private; one that exists stays as it is.
        force: replace an earlier output of this tool there.

    Raises:
        UsageError, CheckpointError: as :func:`check_push`; also a folder that is no output of this tool.
    """
    folder = Path(folder).expanduser()
    check_pushable(folder)
    check_push(repository, force=force)
    return upload(folder, repository, private=private, force=force)


def check_pushable(folder: Path) -> None:
    """Look at what is to be uploaded.

    Raises:
        UsageError: it is no output of this tool.
        CheckpointError: it is no model folder, or has no card.
    """
    check_folder(folder)
    if not (folder / PLAN_NAME).is_file() and not (folder / HISTORY_NAME).is_file():
        raise UsageError(
            f"{quote(folder.name)} is no output of this tool, and is not pushed.",
            hint="Give the folder that `surgery convert`, `finetune` or `merge` wrote.",
        )
    if not (folder / CARD_NAME).is_file():
        raise CheckpointError(f"{quote(folder.name)} has no card ({CARD_NAME}).", hint="`surgery verify` writes it.")


def upload(folder: Path, repository: str, *, private: bool, force: bool) -> PushResult:
    """The last part of :func:`push`, when everything has been looked at.

    Raises:
        CheckpointError: the hub refuses it, or cannot be reached.
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
            ignore_patterns=[".*", "*.partial"],
            delete_patterns="*" if force else None,
        )
        found = api.model_info(repository)
    except Exception as error:
        raise upload_error(error, repository) from error
    return PushResult(repository, f"{api.endpoint}/{repository}", done.oid or found.sha, bool(found.private))
