"""The timeout of requests to the hub."""

from typing import Any

# Seconds without a byte, for each request.
LONGEST_SILENCE = 60.0


def limit_silence() -> None:
    """Give the requests of the hub client a timeout; without one they wait forever for a silent server."""
    from huggingface_hub import get_session

    session = get_session()
    hooks = session.event_hooks
    if _limit not in hooks["request"]:
        session.event_hooks = {**hooks, "request": [*hooks["request"], _limit]}


def _limit(request: Any) -> None:
    """Set the timeout of one request, unless the request has one."""
    given = request.extensions.get("timeout") or {}
    limits = {kind: given.get(kind) or LONGEST_SILENCE for kind in ("connect", "read", "write")}
    request.extensions = {**request.extensions, "timeout": {**given, **limits}}
