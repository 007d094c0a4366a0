"""The summary of a zoo: the state of every item, as plain data and as files."""

from __future__ import annotations

import calendar
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from surgery.checkpoint import dump_json
from surgery.result_table import ResultTable, ShownAsTable
from surgery.version import __version__
from surgery.zoo.items import Item
from surgery.zoo.ledger import LedgerEntry, LedgerState
from surgery.zoo.manifest import plain_level
from surgery.zoo.outputs import GONE, OUT_OF_DATE, find_damage, output_exists

SCHEMA = 1
SUMMARY_NAME, SUMMARY_KIND = "summary.json", "zoo-summary"
# Every version of the page has this line, which identifies it.
PAGE_NAME, PAGE_MARK = "report.html", '<p class="over">Zoo</p>'
STATES = ("done", "failed", "refused", "running", "waiting", "changed")
_EVENT_KEYS = (
    "family",
    "bytes",
    "placed",
    "seconds",
    "peak",
    "verdict",
    "checks",
    "plan",
    "commit",
    "recovered",
    "attempt",
)


class ZooSummary(ShownAsTable, dict[str, Any]):
    """The state of every item as plain data, which prints as a table."""

    def to_table(self) -> ResultTable:
        """One row for each item."""
        counts = ", ".join(f"{count} {state}" for state, count in self["counts"].items() if count)
        columns = ("item", "operations", "state", "verify", "seconds", "reason")
        rows = tuple(
            (row["item"], row["operations"], row["state"], row["verdict"], row["seconds"], row["reason"])
            for row in self["items"]
        )
        return ResultTable(f"zoo {self['zoo']} in {self['output']}", columns, rows, (counts or "no items",))


def summarize(
    name: str, output: Path, items: Sequence[Item], ledger: LedgerState, *, active: bool = False
) -> ZooSummary:
    """One row for each item, with its state.

    States: ``done``; ``failed``; ``refused``: cannot be run as requested; ``running``: started and not ended, or
    killed if ``active`` is False; ``waiting``: not run yet, or its output was deleted or damaged (the reason says
    which); ``changed``: done, and out of date.

    Args:
        name: of the zoo.
        output: the folder of all outputs.
        items: from :func:`expand`.
        ledger: its state.
        active: whether a run is active now.
    """
    rows = [_row(item, ledger, active=active) for item in items]
    summary = {
        "zoo": name,
        "tool": __version__,
        "output": output.as_posix(),
        "begun": ledger.run is not None,
        "ended": ledger.run is not None and ledger.run_ended,
        "active": active,
        "engine": ledger.run_event.get("engine"),
        "counts": {state: sum(row["state"] == state for row in rows) for state in STATES},
        "pushed": sum(row["pushed"] is not None for row in rows),
        "not_pushed": sum(row["push_reason"] is not None for row in rows),
        "bytes": sum(row.get("bytes") or 0 for row in rows if row["state"] == "done"),
        "seconds": round(sum(row.get("seconds") or 0 for row in rows), 3),
        "items": rows,
    }
    return ZooSummary(summary)


def write_summary(summary: Mapping[str, Any], folder: Path) -> tuple[Path, Path]:
    """Write ``summary.json`` and ``report.html`` into a folder; each is replaced atomically."""
    # Imported here: `surgery zoo plan` and `status` do not need the templates.
    from surgery.reporting import replace_file
    from surgery.reporting.zoo import render_zoo_page

    document = {"schema": SCHEMA, "kind": SUMMARY_KIND, **summary}
    data = replace_file(folder / SUMMARY_NAME, dump_json(document).encode())
    return data, replace_file(folder / PAGE_NAME, render_zoo_page(summary).encode())


def _row(item: Item, ledger: LedgerState, *, active: bool) -> dict[str, Any]:
    entry = ledger.entries.get(item.name)
    success = ledger.successes.get(item.name)
    row: dict[str, Any] = {
        "item": item.name,
        "source": item.source,
        "operations": ", ".join(str(options["name"]) for options in item.operations),
        "verify": plain_level(item.verify),
        "state": _state(item, entry),
        "reason": "",
        "hint": None,
        "why": None,
        "fingerprint": entry.fingerprint if entry is not None else None,
        **dict.fromkeys((*_EVENT_KEYS, "repository", "pushed", "push_reason")),
    }
    if entry is None:
        return row
    if lost := _lost(item, row["state"]):
        return {**row, "state": "waiting", "reason": lost}
    row |= _upload(entry, ledger.pushes.get(item.name, {}))
    event: dict[str, Any] = dict(entry.event)
    if entry.status == "done" and event.get("recovered") and success is not None:
        event = {**success.event, **event}
    if row["state"] in ("failed", "refused"):
        row["reason"], row["why"] = str(event.get("message", "")), str(event.get("why", "error"))
        row["hint"] = event.get("hint")
    elif row["state"] == "changed":
        row["reason"] = OUT_OF_DATE
    elif row["state"] == "running" and active:
        row["seconds"] = _since(event.get("at"))
    return {**row, **{key: event[key] for key in _EVENT_KEYS if key in event}}


def _lost(item: Item, state: str) -> str | None:
    """Why an item that is done in the ledger must run again; the plan gives the same reason."""
    if state not in ("done", "changed"):
        return None
    if not output_exists(item.output):
        return GONE
    return find_damage(item.output) if state == "done" else None


def _since(at: Any) -> float | None:
    """Seconds since a time in the ledger; None if the clock has jumped."""
    try:
        passed = time.time() - calendar.timegm(time.strptime(at, "%Y-%m-%dT%H:%M:%SZ"))
    except (TypeError, ValueError):
        return None
    return round(passed, 1) if passed >= 0 else None


def _upload(entry: LedgerEntry, event: Mapping[str, Any]) -> dict[str, Any]:
    """The repository of the upload, its commit (``pushed``), or why it failed (``push_reason``)."""
    if not event or event.get("fingerprint") != entry.fingerprint:
        return {}  # the upload of an earlier output
    reason = "the upload was interrupted" if event["event"] == "pushing" else event.get("message")
    return {"repository": event.get("repository"), "pushed": event.get("commit"), "push_reason": reason}


def _state(item: Item, entry: LedgerEntry | None) -> str:
    if entry is None or entry.status == "waiting":
        return "waiting"
    if entry.status == "started":
        return "running"
    if entry.status == "failed":
        return "refused" if entry.event.get("why") == "refused" else "failed"
    return "done" if entry.work == item.work_fingerprint else "changed"
