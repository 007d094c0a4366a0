"""What went wrong with the hub, in words that say what to do."""

from surgery.checkpoint.names import quote
from surgery.errors import CheckpointError, SurgeryError, UsageError


def download_error(error: Exception, hub_id: str, revision: str | None) -> SurgeryError:
    """Turn an error of the hub client into one of ours. The most specific class is asked for first."""
    from huggingface_hub import errors

    at = f" at revision {quote(revision)}" if revision else ""
    if isinstance(error, errors.GatedRepoError):
        return CheckpointError(
            f"{hub_id} is gated: the hub gives it only to accounts that have accepted its terms.",
            hint=f"Accept them at https://huggingface.co/{hub_id}, then set HF_TOKEN or run `hf auth login`.",
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return CheckpointError(
            f"There is no folder {hub_id}, and the hub has no such model, or it is private.",
            hint="Check the spelling; for a private model set HF_TOKEN or run `hf auth login`.",
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return UsageError(
            f"{hub_id} has no revision {quote(revision)}.", hint="Give one of its branches, tags or commits."
        )
    if isinstance(error, errors.HFValidationError):
        return UsageError(f"{quote(hub_id)} is not a valid hub id: {error}")
    if isinstance(error, errors.LocalEntryNotFoundError | errors.OfflineModeIsEnabled):
        return CheckpointError(
            f"There is no folder {hub_id}, the hub cannot be reached, and the cache does not hold all of it{at}.",
            hint="Check the connection and HF_HUB_OFFLINE, or fetch it where there is one: "
            f"`hf download {hub_id}`, and set HF_HOME to that cache.",
        )
    return CheckpointError(
        f"{hub_id}{at} could not be fetched from the hub: {type(error).__name__}: {_first_line(error)}",
        hint="Try again; what is already downloaded is kept. HF_HUB_OFFLINE=1 uses only what the cache has.",
    )


def upload_error(error: Exception, repository: str, *, asked_only: bool = False) -> SurgeryError:
    """The same for an upload.

    Args:
        error: of the hub client.
        repository: that was to be written to, or its account.
        asked_only: nothing was sent yet: the hub was asked whether it could be.
    """
    from huggingface_hub import errors

    if isinstance(error, errors.LocalTokenNotFoundError):
        return CheckpointError(
            "There is no token, and the hub takes uploads of accounts only.",
            hint="Set HF_TOKEN to a token that may write, or run `hf auth login`.",
        )
    if isinstance(error, errors.OfflineModeIsEnabled):
        return UsageError("HF_HUB_OFFLINE is set, and an upload needs the hub.", hint="Unset it.")
    status = (
        error.response.status_code if isinstance(error, errors.HfHubHTTPError) and error.response is not None else None
    )
    if status == 401 and not isinstance(error, errors.RepositoryNotFoundError):
        return CheckpointError(
            "The hub does not accept the token.", hint="Set HF_TOKEN to a valid one, or run `hf auth login`."
        )
    if status == 403 or isinstance(error, errors.RepositoryNotFoundError):
        return CheckpointError(
            f"The token gives no right to write to {repository}.",
            hint="Give it the right to write at https://huggingface.co/settings/tokens, or set HF_TOKEN to another.",
        )
    if asked_only:
        return CheckpointError(
            f"The hub does not say whether {repository} can be written to: {type(error).__name__}: "
            f"{_first_line(error)}",
            hint="Check the connection and HF_ENDPOINT, and try again; nothing was sent.",
        )
    return CheckpointError(
        f"{repository} could not be uploaded: {type(error).__name__}: {_first_line(error)}",
        hint="Run the same again; weights that have arrived are not sent again.",
    )


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "no further detail")
