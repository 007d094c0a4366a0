"""Every measure has its place in the reports, and a new one needs a folder, a row and a template."""

from __future__ import annotations

from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

import surgery.reporting
from surgery.evaluation.measures import MEASURES
from surgery.reporting.sections import VIEWS, view_of
from tests.reporting.data import result

TEMPLATES = Path(surgery.reporting.__file__).parent / "templates"


@pytest.mark.parametrize("kind", MEASURES)
def test_every_measure_has_its_views(kind: str) -> None:
    assert kind in VIEWS
    for ending in ("html", "md"):
        assert (TEMPLATES / f"_{kind}.{ending}.j2").is_file()


@pytest.mark.parametrize("kind", MEASURES)
def test_the_row_and_the_options_name_the_same_kind(kind: str) -> None:
    row = MEASURES[kind]
    assert row.name == kind and row.options.model_fields["kind"].annotation.__args__ == (kind,)


def test_a_measure_without_a_view_has_a_plain_table() -> None:
    data = result(base=None)
    section = {"kind": "new", "title": "New measure", "results": [{"model": 0, "best_score": 0.25, "name": "[x]"}]}
    view = view_of("new")
    buffer = StringIO()
    Console(file=buffer, width=80).print(view.table(data, section))
    lines = [line.split() for line in buffer.getvalue().splitlines()]
    assert ["best", "score", "0.25"] in lines and ["name", "[x]"] in lines
    assert view.key_figure(section, section["results"][0]) is None and view.note(section) is None
