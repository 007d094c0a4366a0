"""What the wheel says to its users never names a file that only a clone of the project has."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from tests.documentation.links import ROOT, links

PACKAGE = ROOT / "surgery"
# A page or folder of the clone. `docs/` as a folder of the user's own texts is written in examples as texts/.
_ONLY_IN_A_CLONE = re.compile(
    r"\b(?:docs|bench|tests|examples)/[\w*.-]*|\brecipes/[\w-]+\.(?:yaml|json)|\bsuites/[\w-]+\.yaml"
    r"|\b(?:CONTRIBUTING|CHANGELOG)\.md\b|\bmake [a-z-]+\b(?=`)"
)


def _strings(path: Path) -> list[str]:
    """Every string of a module that can reach a user: all but docstrings of functions that are no commands."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    owners = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, owners) and node.body and isinstance(node.body[0], ast.Expr)
    }
    shown = "commands" in path.parts
    return [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and (shown or id(node) not in docstrings)
    ]


def _faults(text: str) -> list[str]:
    return _ONLY_IN_A_CLONE.findall(text)


def test_no_message_names_a_file_of_the_clone() -> None:
    faults = {
        f"{path.relative_to(ROOT)}: {found}"
        for path in PACKAGE.rglob("*.py")
        for text in _strings(path)
        for found in _faults(text)
    }
    assert not faults


def test_no_template_recipe_or_suite_names_one() -> None:
    shipped = [*PACKAGE.rglob("*.jinja"), *PACKAGE.rglob("*.j2"), *(ROOT / "recipes").glob("*.yaml")]
    shipped += (ROOT / "suites").glob("*.yaml")
    assert len(shipped) > 15
    assert not {f"{path.name}: {found}" for path in shipped for found in _faults(path.read_text(encoding="utf-8"))}


def test_the_links_of_the_card_lead_out_of_the_folder_or_to_its_files() -> None:
    template = (PACKAGE / "conversion" / "card.md.jinja").read_text(encoding="utf-8")
    assert all(re.match(r"https://|\{\{", target) for target in links(template))


def test_the_check_finds_such_a_name() -> None:
    assert _faults("see docs/zoo.md") == ["docs/zoo.md"]
    assert _faults("recipes/tiny.yaml, CONTRIBUTING.md") == ["recipes/tiny.yaml", "CONTRIBUTING.md"]
    assert not _faults("surgery recipes show tiny; OUT/results/base; surgery/verify.json; README.md")
