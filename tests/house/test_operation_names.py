"""No file of the package names an operation, but the operation's own folder and the one list of all operations."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import surgery
from surgery.operations import OPERATIONS

PACKAGE = Path(surgery.__file__).parent
# The list of operations, and the public names that lie in an operation's home.
LISTS = ("surgery/__init__.py", "surgery/operations/__init__.py")
# RoPE is a part of every model's anatomy, whether an operation changes it or not; there the word is an identifier.
ANATOMY = {"rope": "surgery/anatomy/"}


def names_in(tree: ast.Module) -> Iterator[tuple[str, int, bool]]:
    """Words of the code with their lines, and whether each is a part of an identifier; without docstrings."""
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield from ((word, node.lineno, False) for word in re.findall(r"\w+", node.value))
        for identifier in identifiers(node):
            line = getattr(node, "lineno", 0)
            yield from ((word, line, True) for word in re.split(r"[._]", identifier))


def identifiers(node: ast.AST) -> Iterator[str]:
    """The identifiers that a node of a syntax tree holds itself."""
    match node:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            yield name
        case ast.arg(arg=name) | ast.FunctionDef(name=name) | ast.ClassDef(name=name):
            yield name
        case ast.keyword(arg=str(name)):
            yield name
        case ast.ImportFrom(module=module, names=names):
            yield module or ""
            yield from (alias.name for alias in names)
        case ast.Import(names=names):
            yield from (alias.name for alias in names)


def operations_named_in(path: Path) -> dict[str, list[int]]:
    """Operation -> the lines of a file that name it, where the file may not."""
    file = path.relative_to(PACKAGE.parent).as_posix()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found: dict[str, list[int]] = {}
    for word, line, is_identifier in names_in(tree):
        home = file.startswith(f"surgery/operations/{word}/") or file in LISTS
        anatomy = is_identifier and word in ANATOMY and file.startswith(ANATOMY[word])
        if word in OPERATIONS and not home and not anatomy:
            found.setdefault(word, []).append(line)
    return found


def files() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", files(), ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_only_the_home_of_an_operation_names_it(path: Path) -> None:
    found = operations_named_in(path)
    assert not found, f"reach the operation through a hook of surgery/operations/base.py: {found}"
