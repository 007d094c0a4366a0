"""A zoo on the terminal: plan, summary, and, during a run, a live table or the lines of a log."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from rich.box import HEAVY_HEAD, SIMPLE_HEAD
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from surgery.checkpoint import format_size
from surgery.colours import LABEL, NOTE, STATES
from surgery.commands.console import printable
from surgery.zoo.manifest import plain_level
from surgery.zoo.quantities import format_duration

if TYPE_CHECKING:
    from surgery.zoo.plan import ZooPlan

_NUMBERS = ("size", "disk", "memory", "time", "peak")
_MOST_LIVE = 12
_ENDINGS = {"done": "done", "interrupted": "interrupted", "pushed": "uploaded", "not pushed": "not uploaded"}
# Least width of the column of names, in characters.
_LEAST_NAME = 24


def plan_table(plan: ZooPlan, width: int) -> Group:
    """Every item with its cost; below, the sums, the operations, and the reasons of refused items."""
    rows = []
    for row in plan.rows:
        ready = row.state == "ready"
        rows.append(
            (
                printable(row.item.name),
                Text("replace" if row.replaces_output and ready else row.state, style=STATES[row.state]),
                row.family,
                format_size(row.source_bytes) if row.source_bytes is not None else "?" if ready else "",
                format_size(row.disk) if row.disk is not None and ready else "?" if ready else "",
                format_size(row.memory) if ready else "",
                plain_level(row.item.verify),
            )
        )
    columns = ("output", "state", "family", "size", "disk", "memory", "verify")
    table = _table(Text("Plan of the zoo"), columns, rows, width)
    counts = {state: len(plan.of(state)) for state in ("ready", "done", "failed", "refused")}
    unknown = sum(row.disk is None for row in plan.of("ready"))
    lines = [
        Text(
            ", ".join(f"{number} {state}" for state, number in counts.items() if number)
            + f"; at most {format_size(plan.disk)} of disk"
            + (f" (without {unknown} that are not downloaded yet)" if unknown else "")
            + f", {format_size(plan.free)} free"
        )
    ]
    for words, number in Counter(row.operations for row in plan.of("ready")).items():
        lines.append(Text(printable(f"{number} x {words}"), style=LABEL))
    lines += _reasons([(row.item.name, row.state, row.reason) for row in plan.rows])
    return Group(table, *lines)


def summary_table(summary: Mapping[str, Any], width: int) -> Group:
    """The state of every item; below, the reasons of items that are not done, and whether a run is active."""
    from surgery.reporting.zoo import course, headline, megabytes, seconds, words

    title = f"{summary['zoo']}: {headline(summary)}"
    columns = ["output", "state", "family", "size", "time", "peak", "verified"]
    if uploads := bool(summary["pushed"] or summary["not_pushed"]):
        columns.append("hub")
    called = words(summary)
    rows = [
        (
            printable(item["item"]),
            Text(called[item["state"]], style=STATES.get(item["state"], "")),
            item["family"] or "",
            megabytes(item["bytes"]),
            seconds(item["seconds"]),
            megabytes(item["peak"]),
            printable(item["verdict"] or ""),
            *([_upload(item)] if uploads else []),
        )
        for item in summary["items"]
    ]
    lines = _reasons([(item["item"], item["state"], item["reason"]) for item in summary["items"]])
    lines += [
        Text(printable(f"{item['repository']}: {item['push_reason']}"), style=STATES["failed"])
        for item in summary["items"]
        if item["push_reason"]
    ]
    if said := course(summary):
        lines.append(Text(said, style=STATES["running"] if summary["active"] else NOTE))
    return Group(_table(Text(printable(title)), columns, rows, width), *lines)


def _table(title: Text, columns: Sequence[str], rows: Sequence[Sequence[str | Text]], width: int) -> Table:
    """A table that fits the width: it first drops the lines between columns, and the names get their width first."""
    cells = [[cell if isinstance(cell, Text) else Text(cell) for cell in row] for row in rows]
    if not _fits(columns, cells, width):
        for row in cells:
            row[:] = [Text(cell.plain.replace(" checks passed", " passed"), style=cell.style) for cell in row]
    is_wide = _fits(columns, cells, width)
    table = Table(
        title=title, title_justify="left", box=HEAVY_HEAD if is_wide else SIMPLE_HEAD, show_edge=is_wide,
        pad_edge=is_wide, padding=(0, 1) if is_wide else 0,
    )  # fmt: skip
    for number, column in enumerate(columns):
        longest = max((row[number].cell_len for row in cells), default=0)
        table.add_column(
            column,
            justify="right" if column in _NUMBERS else "left",
            overflow="fold",
            min_width=min(longest, max(_LEAST_NAME, width // 2)) if number == 0 else None,
        )
    for row in cells:
        table.add_row(*row)
    return table


def _fits(columns: Sequence[str], cells: Sequence[Sequence[Text]], width: int) -> bool:
    widest = [max(len(column), *(row[n].cell_len for row in cells), 0) for n, column in enumerate(columns)]
    return sum(widest) + 3 * len(columns) + 1 <= width


def _reasons(rows: Sequence[tuple[str, str, str]]) -> list[Text]:
    return [Text(printable(f"{name}: {reason}"), style=STATES.get(state, "")) for name, state, reason in rows if reason]


def _upload(item: Mapping[str, Any]) -> Text:
    if item["push_reason"]:
        return Text("not uploaded", style=STATES["failed"])
    return Text(printable(item["repository"] if item["pushed"] else ""))


@dataclass
class _Running:
    stage: str = "starting"
    began: float = field(default_factory=time.monotonic)
    stage_began: float = field(default_factory=time.monotonic)
    unit: str = ""
    done: int = 0
    total: int = 0

    def rate(self, now: float) -> str:
        """How fast the stage goes on, in words; empty where nothing is counted."""
        took = now - self.stage_began
        if not self.done or took <= 0:
            return ""
        return f"{self.done / took / 1e6:,.0f} MB/s" if self.unit == "bytes" else f"{self.done / took:,.0f} tokens/s"


class LiveTable:
    """Shows the running items, and a line with counts, rate and remaining time."""

    def __init__(self, console: Console) -> None:
        self._running: dict[str, _Running] = {}
        self._sizes: dict[str, int] = {}
        self._counts = {"done": 0, "failed": 0}
        self._bytes = 0
        self._began = time.monotonic()
        self._stopping = False
        # Last, because it draws at once.
        self._live = Live(console=console, refresh_per_second=4, transient=True, get_renderable=self._draw)

    def __enter__(self) -> Self:
        """Start drawing."""
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Remove the table; the summary follows."""
        self._live.stop()

    def begin(self, plan: ZooPlan) -> None:
        """Note the items of the plan."""
        self._sizes = {row.item.name: row.source_bytes or 0 for row in plan.of("ready")}
        self._began = time.monotonic()

    def __call__(self, event: Mapping[str, Any]) -> None:
        """Update the table by one event."""
        kind, name = event["event"], event.get("item", "")
        if kind in ("started", "pushing"):
            self._running[name] = _Running("uploading" if kind == "pushing" else "starting")
        elif kind in ("pushed", "not pushed"):
            self._running.pop(name, None)
        elif kind == "stage" and name in self._running:
            running = self._running[name]
            running.stage, running.stage_began, running.done, running.total = event["stage"], time.monotonic(), 0, 0
        elif kind in ("bytes", "tokens") and name in self._running:
            running = self._running[name]
            running.unit, running.done, running.total = kind, event["done"], event["total"]
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
            share = f" {item.done / item.total:.0%}" if item.total else ""
            table.add_row(
                Text(printable(name)),
                item.stage + share,
                format_size(self._sizes.get(name, 0)),
                item.rate(now),
                format_duration(took),
            )
        return Group(table, Text(self._line(now), style="bold"))

    def _line(self, now: float) -> str:
        ended = sum(self._counts.values())
        total, took = len(self._sizes), now - self._began
        parts = [f"{self._counts['done']} of {total} done"]
        if self._counts["failed"]:
            parts.append(f"{self._counts['failed']} failed")
        if self._stopping:
            return "; ".join([*parts, "stopping after cleaning up (Ctrl-C again stops at once)"])
        if ended and took > 0:
            parts.append(f"{ended / took * 60:,.1f} items/min, {self._bytes / took / 1e6:,.0f} MB/s")
            parts.append(f"about {format_duration((total - ended) * took / ended)} left")
        return "; ".join([*parts, format_duration(took)])


class LogLines:
    """Without a terminal: a line at the start and the end of each item, and at each fifth of its calibration."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._total = 0
        self._begun = 0
        self._fifths: dict[str, int] = {}

    def begin(self, plan: ZooPlan) -> None:
        """Note the items of the plan."""
        self._total = len(plan.of("ready"))
        self._say(f"zoo: {self._total} to do, {len(plan.of('done'))} already done")

    def __call__(self, event: Mapping[str, Any]) -> None:
        """Print a line if the event is a start, an end, or another fifth of a calibration."""
        kind, name = event["event"], event.get("item", "")
        took = f", {format_duration(event['seconds'])}" if event.get("seconds") is not None else ""
        why = f": {event['message']}" if event.get("message") else ""
        if kind == "started":
            again = event.get("attempt", 1) > 1
            self._begun += not again
            self._say(f"{name}: started {'again' if again else f'({self._begun} of {self._total})'}")
        elif kind == "tokens":
            fifths = 5 * event["done"] // event["total"]
            if fifths != self._fifths.get(name):
                self._fifths[name] = fifths
                self._say(f"{name}: calibrating, {fifths / 5:.0%}")
        elif kind == "failed":
            self._say(f"{name}: {'refused' if event.get('why') == 'refused' else 'failed'}{took}{why}")
        elif kind in ("done", "interrupted", "pushed", "not pushed"):
            self._say(f"{name}: {_ENDINGS[kind]}{took}{why}")
        elif kind == "pushing":
            self._say(f"{name}: uploading")
        elif kind == "stopping":
            self._say("stopping after cleaning up (a second signal stops at once)")

    def _say(self, line: str) -> None:
        self._console.print(printable(" ".join(line.split("\n"))), markup=False, highlight=False, soft_wrap=True)
