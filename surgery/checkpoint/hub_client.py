"""How long the hub may be silent."""

from typing import Any

# Seconds without a byte, of any one request.
LONGEST_SILENCE = 60.0


def limit_silence() -> None:
    """Let requests of the hub client end with an error where nothing answers: by itself it waits for ever."""
    from huggingface_hub import get_session

    session = get_session()
    hooks = session.event_hooks
    if _limit not in hooks["request"]:
        session.event_hooks = {**hooks, "request": [*hooks["request"], _limit]}


def _limit(request: Any) -> None:
    """For one request, most of which are made with no limit; what has one keeps it."""
    given = request.extensions.get("timeout") or {}
    limits = {kind: given.get(kind) or LONGEST_SILENCE for kind in ("connect", "read", "write")}
    request.extensions = {**request.extensions, "timeout": {**given, **limits}}
