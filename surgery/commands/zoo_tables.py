"""A zoo on the terminal: its plan, its summary, and the table that lives while it runs."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from surgery.checkpoint import human
from surgery.commands.console import printable
from surgery.zoo.manifest import plain_level
from surgery.zoo.quantities import duration

if TYPE_CHECKING:
    from surgery.zoo.planning import ZooPlan

_STYLES = {"done": "green", "failed": "red", "refused": "red", "ready": "", "running": "blue", "changed": "yellow"}
_MOST_LIVE = 12


def plan_table(plan: ZooPlan) -> Group:
    """Every item with what it costs; below, the sums, what is done, and why items are refused."""
    table = Table(title="Plan of the zoo", title_justify="left")
    for column in ("output", "state", "family", "size", "disk", "memory", "verify"):
        table.add_column(column, justify="right" if column in ("size", "disk", "memory") else "left", overflow="fold")
    for row in plan.rows:
        ready = row.state == "ready"
        table.add_row(
            Text(printable(row.item.name)),
            Text("replace" if row.again and ready else row.state, style=_STYLES[row.state]),
            row.family,
            human(row.bytes) if row.bytes is not None else "?" if ready else "",
            human(row.disk) if row.disk is not None and ready else "?" if ready else "",
            human(row.memory) if ready else "",
            plain_level(row.item.verify),
        )
    counts = {state: len(plan.of(state)) for state in ("ready", "done", "failed", "refused")}
    unknown = sum(row.disk is None for row in plan.of("ready"))
    lines = [
        Text(
            ", ".join(f"{number} {state}" for state, number in counts.items() if number)
            + f"; at most {human(plan.disk)} of disk"
            + (f" and what {unknown} not fetched yet take" if unknown else "")
            + f", {human(plan.free)} are free"
        )
    ]
    for words, number in Counter(row.operations for row in plan.of("ready")).items():
        lines.append(Text(printable(f"{number} x {words}"), style="dim"))
    lines += [
        Text(printable(f"{row.item.name}: {row.reason}"), style=_STYLES[row.state]) for row in plan.rows if row.reason
    ]
    return Group(table, *lines)


def summary_table(summary: Mapping[str, Any]) -> Group:
    """What has become of every item; below, why those that are not done are not."""
    from surgery.reporting.zoo import WORDS, headline, megabytes, seconds

    title = f"{summary['zoo']}: {headline(summary)}"
    table = Table(title=Text(printable(title)), title_justify="left")
    columns = ["output", "state", "family", "size", "time", "peak", "verified"]
    if uploads := bool(summary["pushed"] or summary["not_pushed"]):
        columns.append("hub")
    for column in columns:
        table.add_column(column, justify="right" if column in ("size", "time", "peak") else "left", overflow="fold")
    for item in summary["items"]:
        table.add_row(
            Text(printable(item["item"])),
            Text(WORDS[item["state"]], style=_STYLES.get(item["state"], "")),
            item["family"] or "",
            megabytes(item["bytes"]),
            seconds(item["seconds"]),
            megabytes(item["peak"]),
            Text(printable(item["verdict"] or "")),
            *([_upload(item)] if uploads else []),
        )
    reasons = [
        Text(printable(f"{item['item']}: {item['reason']}"), style=_STYLES[item["state"]])
        for item in summary["items"]
        if item["reason"]
    ]
    reasons += [
        Text(printable(f"{item['repository']}: {item['push_reason']}"), style="red")
        for item in summary["items"]
        if item["push_reason"]
    ]
    return Group(table, *reasons)


def _upload(item: Mapping[str, Any]) -> Text:
    if item["push_reason"]:
        return Text("not uploaded", style="red")
    return Text(printable(item["repository"] if item["pushed"] else ""))


@dataclass
class _Running:
    stage: str = "starting"
    began: float = field(default_factory=time.monotonic)
    done: int = 0
    total: int = 0


class LiveTable:
    """Items as they run, and a line with counts, a rate and the remaining time."""

    def __init__(self, console: Console) -> None:
        self._running: dict[str, _Running] = {}
        self._sizes: dict[str, int] = {}
        self._counts = {"done": 0, "failed": 0}
        self._bytes = 0
        self._began = time.monotonic()
        self._stopping = False
        # Last: it draws at once.
        self._live = Live(console=console, refresh_per_second=4, transient=True, get_renderable=self._draw)

    def __enter__(self) -> Self:
        """Begin to draw."""
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Take the table away; what remains is the summary."""
        self._live.stop()

    def begin(self, plan: ZooPlan) -> None:
        """Take over how much there is to do."""
        self._sizes = {row.item.name: row.bytes or 0 for row in plan.of("ready")}
        self._began = time.monotonic()

    def __call__(self, event: Mapping[str, Any]) -> None:
        """Take note of one event."""
        kind, name = event["event"], event.get("item", "")
        if kind in ("started", "pushing"):
            self._running[name] = _Running("uploading" if kind == "pushing" else "starting")
        elif kind in ("pushed", "not pushed"):
            self._running.pop(name, None)
        elif kind == "stage" and name in self._running:
            self._running[name].stage = event["stage"]
        elif kind == "bytes" and name in self._running:
            self._running[name].done, self._running[name].total = event["done"], event["total"]
        elif kind in ("done", "failed", "interrupted"):
            self._running.pop(name, None)
            if kind in self._counts and name in self._sizes:
                self._counts[kind] += 1
                self._bytes += self._sizes[name]
        elif kind == "stopping":
            self._stopping = True

    def _draw(self) -> Group:
        table = Table(box=None, pad_edge=False)
        for column in ("item", "doing", "size", "rate", "time"):
            table.add_column(column, justify="left" if column in ("item", "doing") else "right")
        now = time.monotonic()
        for name, item in list(self._running.items())[:_MOST_LIVE]:
            took = now - item.began
            share = f" {item.done / item.total:.0%}" if item.total and item.stage == "converting" else ""
            rate = f"{item.done / took / 1e6:,.0f} MB/s" if item.done and took > 0 else ""
            table.add_row(
                Text(printable(name)), item.stage + share, human(self._sizes.get(name, 0)), rate, duration(took)
            )
        return Group(table, Text(self._line(now), style="bold"))

    def _line(self, now: float) -> str:
        ended = sum(self._counts.values())
        total, took = len(self._sizes), now - self._began
        parts = [f"{self._counts['done']} of {total} done"]
        if self._counts["failed"]:
            parts.append(f"{self._counts['failed']} failed")
        if self._stopping:
            return "; ".join([*parts, "stopping: running items clean up (Ctrl-C again: at once)"])
        if ended and took > 0:
            parts.append(f"{ended / took * 60:,.1f} items/min, {self._bytes / took / 1e6:,.0f} MB/s")
            parts.append(f"about {duration((total - ended) * took / ended)} left")
        return "; ".join([*parts, duration(took)])
