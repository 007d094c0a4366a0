"""One self-contained page, and the pictures beside it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from surgery.reporting import wording
from surgery.reporting.drawings import Drawings, draw_all

Plain = Mapping[str, Any]


@dataclass(frozen=True)
class ReportFiles:
    """What was written."""

    html: Path
    pngs: tuple[Path, ...]


def write_report(result: Plain, out: Path, *, history: Sequence[Plain] | None = None, provenance: Plain) -> ReportFiles:
    """Write ``report.html`` and the PNG files into a folder, which is made if it is not there.

    Files of the same names are replaced, each at once. The page loads nothing: its pictures are within it, it has no
    script, and all text of the result is escaped.

    Args:
        result: what ``EvaluationResult.to_dict()`` gives.
        out: the folder.
        history: training runs, each ``{"label": str, "rows": [{"step", "loss", "learning_rate", ...}]}``.
        provenance: names and values to print at the end: the command, versions, hashes; nested mappings are flattened.
    """
    runs = [run for run in history or () if run.get("rows")]
    drawings = draw_all(result, runs)
    pngs = [replace_file(out / f"{drawing.stem}.png", drawing.png) for drawing in drawings]
    page = render_page(result, drawings, history=runs, provenance=provenance)
    return ReportFiles(replace_file(out / "report.html", page.encode("utf-8")), tuple(pngs))


def render_page(result: Plain, drawings: Drawings, *, history: Sequence[Plain], provenance: Plain) -> str:
    """The page as text."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    names = ("typographic", "number", "signed", "perplexity", "count", "counted", "interval", "negative_heads")
    environment.filters.update({name: getattr(wording, name) for name in names})
    environment.globals["span"] = wording.span
    return environment.get_template("page.html.j2").render(
        result=result,
        drawings=drawings,
        history=history,
        headlines=wording.HEADLINES,
        facts=_flattened({**provenance, **_facts(result)}),
    )


def _facts(result: Plain) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    for role, use in (("model", result["model"]), ("base", result["against"])):
        if use is None:
            continue
        facts[role] = {
            "name": use["name"],
            "commit": use["commit"],
            "type": use["model_type"],
            "parameters": wording.count(use["parameters"]),
            "operations": ", ".join(use["operations"]),
            "plan": use["plan"],
            "run as": f"{use['dtype']}, {use['attn_implementation']}, {use['device']}",
        }
    facts["tokens measured (sha256)"] = result["data"]["fingerprint"]
    return facts


def _flattened(facts: Plain, above: str = "") -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for name, value in facts.items():
        label = f"{above} {name}".strip()
        if isinstance(value, Mapping):
            rows += _flattened(value, label)
        elif value not in (None, ""):
            rows.append((label, str(value)))
    return rows


def replace_file(path: Path, data: bytes) -> Path:
    """Write beside, then rename: a reader sees the old file or the new one, never half of it. Makes the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_bytes(data)
    beside.replace(path)
    return path
