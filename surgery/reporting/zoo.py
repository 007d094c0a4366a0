"""The page of a zoo: one table in which every item is done or has a reason."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from surgery import colours
from surgery.reporting.formats import DASH, count
from surgery.words import counted

WORDS = {
    "done": "done",
    "failed": "failed",
    "refused": "refused",
    "running": "running",
    "waiting": "waiting",
    "changed": "out of date",
}


def render_zoo_page(summary: Mapping[str, Any]) -> str:
    """One page from what ``surgery.zoo.summarize`` gives: self-contained, no script, all text escaped."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update({"megabytes": megabytes, "seconds": seconds, "count": count, "counted": counted})
    return environment.get_template("zoo.html.j2").render(
        zoo=summary,
        headline=headline(summary),
        words=words(summary),
        course=course(summary),
        light=colours.LIGHT,
        dark=colours.DARK,
    )


def words(summary: Mapping[str, Any]) -> dict[str, str]:
    """The word for each state; an unfinished item is running only while a run is active."""
    return WORDS if summary.get("active") else {**WORDS, "running": "interrupted"}


def course(summary: Mapping[str, Any]) -> str:
    """Whether the zoo runs, or why it does not; empty for a finished run."""
    if summary.get("active"):
        return "running"
    if not summary.get("begun", True):
        return "not started: `surgery zoo run` starts it"
    return "" if summary["ended"] else "stopped before its end: `surgery zoo run` resumes it"


def headline(summary: Mapping[str, Any]) -> str:
    """``97 of 100 done, 2 failed, 1 refused``."""
    counts = summary["counts"]
    parts = [f"{count(counts['done'])} of {count(len(summary['items']))} done"]
    parts += [
        f"{count(counts[state])} {word}" for state, word in words(summary).items() if state != "done" and counts[state]
    ]
    parts += [f"{count(summary['pushed'])} uploaded"] if summary["pushed"] else []
    parts += [f"{count(summary['not_pushed'])} not uploaded"] if summary["not_pushed"] else []
    return ", ".join(parts)


def megabytes(value: float | None) -> str:
    """Bytes as MB, with one decimal for small values."""
    if value is None:
        return DASH
    return f"{value / 1e6:,.0f} MB" if value >= 10e6 else f"{value / 1e6:.1f} MB"


def seconds(value: float | None) -> str:
    """Seconds with one decimal, or minutes for large values."""
    if value is None:
        return DASH
    return f"{value:.1f} s" if value < 100 else f"{value / 60:,.0f} min"
