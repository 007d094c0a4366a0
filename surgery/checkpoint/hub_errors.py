"""Errors of the hub client as errors of surgery, with hints."""

from surgery.checkpoint.names import quote
from surgery.errors import CheckpointError, SurgeryError, UsageError


def download_error(error: Exception, hub_id: str, revision: str | None) -> SurgeryError:
    """The error for a failed download. The most specific class is tested first."""
    from huggingface_hub import errors

    at = f" at revision {quote(revision)}" if revision else ""
    if isinstance(error, errors.GatedRepoError):
        return CheckpointError(
            f"{hub_id} is gated: only accounts that accepted its terms can download it",
            hint=f"Accept the terms at https://huggingface.co/{hub_id}, then set HF_TOKEN or run `hf auth login`.",
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return CheckpointError(
            f"there is no folder {hub_id}, and the hub has no such model, or it is private",
            hint="Check the spelling. For a private model set HF_TOKEN or run `hf auth login`.",
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return UsageError(
            f"{hub_id} has no revision {quote(revision)}", hint="Give one of its branches, tags or commits."
        )
    if isinstance(error, errors.HFValidationError):
        return UsageError(f"{quote(hub_id)} is not a valid hub id: {error}")
    if isinstance(error, errors.LocalEntryNotFoundError | errors.OfflineModeIsEnabled):
        return CheckpointError(
            f"there is no folder {hub_id}, the hub cannot be reached, and the cache does not hold all files of it{at}",
            hint="Check the connection and HF_HUB_OFFLINE. Or run `hf download "
            f"{hub_id}` on a machine with a connection, and set HF_HOME to its cache.",
        )
    return CheckpointError(
        f"{hub_id}{at} could not be downloaded from the hub: {type(error).__name__}: {_first_line(error)}",
        hint="Try again; files that were downloaded are kept. HF_HUB_OFFLINE=1 uses the cache alone.",
    )


def upload_error(error: Exception, repository: str, *, asked_only: bool = False) -> SurgeryError:
    """The error for a failed upload.

    Args:
        error: of the hub client.
        repository: of the upload, or its account.
        asked_only: whether the upload was only checked, and nothing was sent.
    """
    from huggingface_hub import errors

    if isinstance(error, errors.LocalTokenNotFoundError):
        return CheckpointError(
            "there is no token, and only accounts can upload to the hub",
            hint="Set HF_TOKEN to a token with write access, or run `hf auth login`.",
        )
    if isinstance(error, errors.OfflineModeIsEnabled):
        return UsageError("HF_HUB_OFFLINE is set, and an upload needs the hub", hint="Unset HF_HUB_OFFLINE.")
    status = (
        error.response.status_code if isinstance(error, errors.HfHubHTTPError) and error.response is not None else None
    )
    if status == 401 and not isinstance(error, errors.RepositoryNotFoundError):
        return CheckpointError(
            "the hub rejects the token", hint="Set HF_TOKEN to a valid token, or run `hf auth login`."
        )
    if status == 403 or isinstance(error, errors.RepositoryNotFoundError):
        return CheckpointError(
            f"the token has no write access to {repository}",
            hint="Grant write access at https://huggingface.co/settings/tokens, or set HF_TOKEN to another token.",
        )
    if asked_only:
        return CheckpointError(
            f"write access to {repository} could not be checked: {type(error).__name__}: {_first_line(error)}",
            hint="Check the connection and HF_ENDPOINT, then try again; nothing was sent.",
        )
    return CheckpointError(
        f"{repository} could not be uploaded: {type(error).__name__}: {_first_line(error)}",
        hint="Run the same command again; weights that were uploaded are not sent again.",
    )


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "no further detail")
