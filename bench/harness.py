"""What the benchmarks share: interleaved timing, a table, and JSON with the environment."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def arguments(description: str | None) -> argparse.ArgumentParser:
    """What every benchmark takes: a model folder, and where the JSON goes."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--out", type=Path)
    return parser


def interleaved(ways: dict[str, Callable[[], Any]], repeats: int, warmup: int = 1) -> dict[str, list[float]]:
    """Seconds of each way, taken in turn, so that a noisy moment hits all of them alike."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(warmup + repeats):
        order = list(ways) if turn % 2 else list(reversed(ways))
        for name in order:
            began = time.perf_counter()
            ways[name]()
            if turn >= warmup:
                seconds[name].append(time.perf_counter() - began)
    return seconds


def ratio(seconds: dict[str, list[float]], way: str, against: str) -> float:
    """Median of the ratios within each turn: steadier than a ratio of medians where the machine drifts."""
    return statistics.median(a / b for a, b in zip(seconds[way], seconds[against], strict=True))


def environment() -> dict[str, Any]:
    """Versions and the size of the machine."""
    from surgery.loading import environment as versions

    return {"machine": platform.machine(), "cores": os.cpu_count(), **versions()}


def report(name: str, rows: list[dict[str, Any]], out: Path | None) -> None:
    """Print rows as a table and write them as JSON."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=name, title_justify="left")
    for column in rows[0]:
        table.add_column(column)
    for row in rows:
        table.add_row(*(f"{value:.4g}" if isinstance(value, float) else str(value) for value in row.values()))
    Console().print(table)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        content = {"bench": name, "environment": environment(), "rows": rows}
        out.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        print(f"wrote {out}")
