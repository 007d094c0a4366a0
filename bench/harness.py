"""Shared parts of the benchmarks: arguments, a table, and JSON with the environment."""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any


def arguments(description: str | None) -> argparse.ArgumentParser:
    """A parser with the arguments of every benchmark: a model folder, and a file for the JSON."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--out", type=Path)
    return parser


def passages(tokenizer: Any, texts: Sequence[str], length: int) -> Iterator[tuple[str, list[int]]]:
    """Name and ``length`` tokens of each text, from token 1,024 on. Texts that are too short are named and skipped."""
    from surgery.data import read_documents

    for document in read_documents(texts):
        tokens = tokenizer(document.text, add_special_tokens=False, verbose=False)["input_ids"]
        if len(tokens) < 1024 + length:
            print(f"{document.name}: {len(tokens)} tokens, {1024 + length} are needed; skipped")
            continue
        yield Path(document.name).name, tokens[1024 : 1024 + length]


def environment() -> dict[str, Any]:
    """Versions and the size of the machine."""
    from surgery.loading import environment as versions

    return {"machine": platform.machine(), "cores": os.cpu_count(), **versions()}


def report(name: str, rows: list[dict[str, Any]], out: Path | None) -> None:
    """Print rows as a table and write them as JSON.

    Raises:
        SystemExit: there are no rows.
    """
    if not rows:
        raise SystemExit(f"{name}: nothing was measured")
    from rich.console import Console
    from rich.table import Table

    table = Table(title=name, title_justify="left")
    for column in rows[0]:
        table.add_column(column)
    for row in rows:
        table.add_row(*map(_cell, row.values()))
    Console().print(table)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        content = {"bench": name, "environment": environment(), "rows": rows}
        out.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        print(f"wrote {out}")


def _cell(value: Any) -> str:
    """A value as printed; nothing for None."""
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
