"""Uploading what a zoo has made: one private repository for each output, and a line of the ledger for each upload.

An upload that a kill has interrupted is gone on with by the next one: the ledger says that it was begun, so that a
repository which holds the output already is known to be ours, and weights that have arrived are not sent again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from surgery.checkpoint.hub_upload import check_push, check_pushable, upload
from surgery.errors import SurgeryError
from surgery.zoo.items import Item
from surgery.zoo.ledger import LedgerState
from surgery.zoo.running import Zoo, working
from surgery.zoo.schedule import OnEvent


def push_zoo(
    zoo: Zoo, owner: str, *, private: bool = True, force: bool = False, on_event: OnEvent | None = None
) -> dict[str, Any]:
    """Upload every output that is done and not yet there to ``owner/<name of its folder>``; returns the summary.

    What cannot be uploaded is explained in its row and keeps nobody back.

    Args:
        zoo: what :func:`open_zoo` gives.
        owner: account or organization; :func:`surgery.checkpoint.hub_upload.check_owner` says whether it can be.
        private: whether repositories that are made here are private.
        force: replace earlier outputs of this tool that are there.
        on_event: told every event of the ledger.

    Raises:
        CheckpointError: the ledger is broken, or cannot be written.
        OutputBusyError: a run works on the zoo.
    """
    tell = on_event or (lambda event: None)
    with working(zoo) as (ledger, state):
        done = {row["item"] for row in zoo.summary()["items"] if row["state"] == "done"}
        for item in zoo.items:
            repository = f"{owner}/{item.name}"
            target = {"item": item.name, "repository": repository, "fingerprint": _made(item, state)}
            before = state.pushes.get(item.name, {})
            same = all(before.get(key) == value for key, value in target.items())
            if item.name not in done or (same and before["event"] == "pushed"):
                continue
            # What this zoo began to upload there, and a kill kept from being written down, is not in the way.
            replaces = force or (same and before["event"] == "pushing")
            try:
                check_pushable(item.output)
                check_push(repository, force=replaces)
                tell(ledger.write("pushing", **target))
                result = upload(item.output, repository, private=private, force=replaces)
            except SurgeryError as error:
                tell(ledger.write("not pushed", **target, message=str(error)))
            else:
                place: Mapping[str, Any] = {"url": result.url, "commit": result.commit, "private": result.private}
                tell(ledger.write("pushed", **target, **place))
    return zoo.summary()


def _made(item: Item, state: LedgerState) -> str | None:
    entry = state.entries.get(item.name)
    return entry.fingerprint if entry is not None else None
