"""The shape of the package: no import circles, no two public classes of one name, files of a readable size."""

from __future__ import annotations

import ast
import statistics
from collections import defaultdict
from pathlib import Path

import grimp

import surgery

PACKAGE = Path(surgery.__file__).parent
MOST_LINES = 500
MEDIAN_LINES = 130
# The commands register themselves with the app, which imports them.
REGISTRATION = "surgery.commands.app"


def circles() -> list[set[str]]:
    """Modules that import each other, directly or by way of others.

    Imports inside functions count: they put a circle off until the function is called. Imports under
    ``if TYPE_CHECKING`` do not: they never run.
    """
    graph = grimp.build_graph("surgery", exclude_type_checking_imports=True, cache_dir=None)
    imports = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    reached: dict[str, set[str]] = {}
    for module, imported in imports.items():
        found: set[str] = set()
        waiting = list(imported)
        while waiting:
            other = waiting.pop()
            if other not in found:
                found.add(other)
                waiting += imports[other]
        reached[module] = found
    left = {module for module in imports if module in reached[module]}
    found_circles = []
    while left:
        first = min(left)
        circle = {module for module in left if first in reached[module] and module in reached[first]}
        found_circles.append(circle)
        left -= circle
    return found_circles


def test_no_modules_import_each_other() -> None:
    rooms = {min(circle).rpartition(".")[0]: circle for circle in circles() if REGISTRATION not in circle}
    assert not rooms, rooms


def test_no_two_public_classes_have_one_name() -> None:
    found: defaultdict[str, list[str]] = defaultdict(list)
    for path in PACKAGE.rglob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                found[node.name].append(path.relative_to(PACKAGE).as_posix())
    twins = {name: files for name, files in found.items() if len(files) > 1}
    assert not twins, twins


def test_files_are_short() -> None:
    lines = {
        path.relative_to(PACKAGE).as_posix(): len(path.read_text(encoding="utf-8").splitlines())
        for path in PACKAGE.rglob("*.py")
    }
    assert not [file for file, count in lines.items() if count > MOST_LINES]
    assert statistics.median(lines.values()) <= MEDIAN_LINES
