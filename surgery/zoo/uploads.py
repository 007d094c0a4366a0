"""Uploads of a zoo: one private repository for each output, and events of the ledger for each upload.

The next upload resumes one that was killed: the ledger says that it was started, so a repository that already holds the
output is recognized, and weights that were uploaded are not sent again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from surgery.checkpoint.hub_upload import check_push, check_pushable, upload
from surgery.errors import SurgeryError
from surgery.zoo.items import Item
from surgery.zoo.ledger import LedgerState
from surgery.zoo.schedule import OnEvent
from surgery.zoo.summaries import ZooSummary
from surgery.zoo.zoo import Zoo, locked_ledger


def push_zoo(
    zoo: Zoo, owner: str, *, private: bool = True, force: bool = False, on_event: OnEvent | None = None
) -> ZooSummary:
    """Upload every finished output to ``owner/<name of its folder>``, unless it is there; returns the summary.

    An output that cannot be uploaded has the reason in its row; the others are still uploaded.

    Args:
        zoo: from :func:`open_zoo`.
        owner: account or organization; check it with :func:`surgery.checkpoint.hub_upload.check_owner`.
        private: whether new repositories are private.
        force: replace earlier outputs of surgery in existing repositories.
        on_event: called with every event of the ledger.

    Raises:
        CheckpointError: the ledger is broken, or cannot be written.
        OutputBusyError: another run is working on the zoo.
    """
    on_event = on_event or (lambda event: None)
    with locked_ledger(zoo) as (ledger, state):
        done = {row["item"] for row in zoo.summary()["items"] if row["state"] == "done"}
        for item in zoo.items:
            repository = f"{owner}/{item.name}"
            target = {"item": item.name, "repository": repository, "fingerprint": _fingerprint(item, state)}
            before = state.pushes.get(item.name, {})
            same = all(before.get(key) == value for key, value in target.items())
            if item.name not in done or (same and before["event"] == "pushed"):
                continue
            # An upload of this zoo that was killed before its event was written may be replaced.
            replaces = force or (same and before["event"] == "pushing")
            try:
                check_pushable(item.output)
                check_push(repository, force=replaces)
                on_event(ledger.write("pushing", **target))
                result = upload(item.output, repository, private=private, force=replaces)
            except SurgeryError as error:
                on_event(ledger.write("not pushed", **target, message=str(error)))
            else:
                commit: Mapping[str, Any] = {"url": result.url, "commit": result.commit, "private": result.private}
                on_event(ledger.write("pushed", **target, **commit))
    return zoo.summary()


def _fingerprint(item: Item, state: LedgerState) -> str | None:
    entry = state.entries.get(item.name)
    return entry.fingerprint if entry is not None else None
