"""The notebook in `examples/` runs from top to bottom, and every result that it ends a cell with shows as HTML."""

from __future__ import annotations

import ast
import inspect
import json
from pathlib import Path
from typing import Any

import pytest

import surgery

NOTEBOOK = Path(__file__).parents[2] / "examples" / "notebook.ipynb"


def code_cells() -> list[str]:
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def run(cells: list[str]) -> list[Any]:
    """Run the cells in one namespace, as a notebook does; the values of their last lines."""
    names: dict[str, Any] = {"__name__": "__main__"}
    shown = []
    for cell in cells:
        body = ast.parse(cell).body
        last = body.pop() if isinstance(body[-1], ast.Expr) else None
        exec(compile(ast.Module(body, []), "cell", "exec"), names)
        if isinstance(last, ast.Expr):
            shown.append(eval(compile(ast.Expression(last.value), "cell", "eval"), names))
    return shown


def test_no_cell_holds_a_result() -> None:
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    assert all(cell["outputs"] == [] for cell in cells if cell["cell_type"] == "code")


def test_every_call_has_keywords_that_exist() -> None:
    calls = [node for cell in code_cells() for node in ast.walk(ast.parse(cell)) if isinstance(node, ast.Call)]
    ours = [call for call in calls if ast.unparse(call.func).startswith("surgery.")]
    assert len(ours) >= 6
    for call in ours:
        parameters = inspect.signature(getattr(surgery, ast.unparse(call.func).removeprefix("surgery."))).parameters
        free = any(one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters.values())
        for keyword in call.keywords:
            assert free or keyword.arg is None or keyword.arg in parameters, ast.unparse(call)


@pytest.mark.slow
def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pages = [value._repr_html_() for value in run(code_cells())]
    assert len(pages) >= 9 and all("<table" in page or "<img" in page for page in pages)
    assert (tmp_path / "notebook-work" / "pictures" / "loss-by-position.png").is_file()
