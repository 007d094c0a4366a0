"""A report: one self-contained page, the same as Markdown for a card, and the pictures."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from surgery import colours
from surgery.markdown import escape_markdown
from surgery.reporting import formats, glance
from surgery.reporting.drawings import Drawings, draw_all
from surgery.reporting.sections import VIEWS, view_of
from surgery.words import counted

Plain = Mapping[str, Any]
Histories = Sequence[Sequence[Plain]]

_FILTERS = (
    "typographic",
    "number",
    "signed",
    "perplexity",
    "count",
    "interval",
    "bounds",
    "negative_heads",
    "percent",
    "size",
    "visible",
    "one_line",
)


def draw_report(result: Plain, *, histories: Histories | None = None, provenance: Plain) -> dict[str, bytes]:
    """The files of a report by name: ``report.html``, ``report.md`` and the pictures.

    The page loads no other file: its pictures are embedded, it has no script, and all text of the result is escaped.

    Args:
        result: what ``EvaluationResult.to_dict()`` gives.
        histories: training runs of each model, each ``{"label": str, "rows": [{"step", "loss", ...}]}``.
        provenance: names and values for the last table: the command, versions, hashes; nested mappings are flattened.
    """
    given = histories if histories is not None else [[] for _ in result["models"]]
    runs = [[run for run in own if run.get("rows")] for own in given]
    drawings = draw_all(result, runs)
    files = {
        "report.html": render_page(result, drawings, provenance=provenance).encode("utf-8"),
        "report.md": render_markdown(result, drawings, provenance=provenance).encode("utf-8"),
    }
    for drawing in drawings:
        files |= {f"{drawing.stem}.png": drawing.png, f"{drawing.stem}.svg": drawing.light_svg}
    return files


def render_page(result: Plain, drawings: Drawings, *, provenance: Plain) -> str:
    """The page as text."""
    return _render("page.html.j2", result, escaped=True, drawings=drawings, provenance=provenance)


def render_markdown(result: Plain, drawings: Drawings | None, *, provenance: Plain) -> str:
    """Markdown with the verdict, the tables, and links to the pictures if there are drawings."""
    return _render("report.md.j2", result, escaped=False, drawings=drawings, provenance=provenance)


def for_one_model(result: Plain, number: int) -> dict[str, Any]:
    """The result of one of its models and the base alone."""
    base = len(result["models"])
    kept = {number: 0, base: 1}

    def section(own: Plain) -> dict[str, Any]:
        rows = [{**row, "model": kept[row["model"]]} for row in own["results"] if row["model"] in kept]
        return {**own, "results": rows}

    return {
        **result,
        "models": [result["models"][number]],
        "verdicts": [{**verdict, "model": 0} for verdict in result["verdicts"] if verdict["model"] == number],
        "sections": [section(own) for own in result["sections"]],
    }


def _render(template: str, result: Plain, *, escaped: bool, drawings: Drawings | None, provenance: Plain) -> str:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=escaped,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update({name: getattr(formats, name) for name in _FILTERS})
    environment.filters.update({"md": escape_markdown, "counted": counted})
    environment.globals["span"] = formats.span
    environment.globals["glance"] = glance
    environment.globals["key_figure"] = lambda section, own: view_of(section["kind"]).key_figure(section, own)
    return environment.get_template(template).render(
        result=result,
        drawings=drawings,
        headlines=formats.HEADLINES,
        neutral=[kind for kind, view in VIEWS.items() if view.is_neutral],
        level=f"{result['interval']['level']:.0%}",
        facts=flattened({**provenance, **_facts(result)}),
        light=colours.LIGHT,
        dark=colours.DARK,
    )


def _facts(result: Plain) -> dict[str, Any]:
    facts: dict[str, Any] = {"version of": result["environment"]}
    uses = list(result["models"])
    roles = ["model"] if len(uses) == 1 else [f"model {number + 1}" for number in range(len(uses))]
    if result["against"] is not None:
        uses, roles = [*uses, result["against"]], [*roles, "base"]
    for role, use in zip(roles, uses, strict=True):
        facts[role] = {
            "name": use["name"],
            "files (sha256)": use["fingerprint"],
            "commit": use["commit"],
            "type": use["model_type"],
            "parameters": formats.count(use["parameters"]),
            "operations": ", ".join(use["operations"]),
            "plan": use["plan"],
            "run as": f"{use['dtype']}, {use['attn_implementation']}, {use['device']}",
        }
    for section in result["sections"]:
        data = section.get("data")
        if data is not None:
            facts[f"tokens of {section['kind']} (sha256)"] = data["fingerprint"]
    return facts


def flattened(facts: Plain, above: str = "") -> list[tuple[str, str]]:
    """Names and values in one list, without empty values."""
    rows: list[tuple[str, str]] = []
    for name, value in facts.items():
        label = f"{above} {name}".strip()
        if isinstance(value, Mapping):
            rows += flattened(value, label)
        elif value not in (None, ""):
            rows.append((label, str(value)))
    return rows


def replace_file(path: Path, data: bytes) -> Path:
    """Write a file in one step: a reader sees the old file or the new one. Creates the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_bytes(data)
    beside.replace(path)
    return path
