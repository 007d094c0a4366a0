"""CONTRIBUTING.md names files that exist: the rooms, and at most three files for each change."""

from __future__ import annotations

import re

from tests.documentation.links import ROOT

TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
PACKAGE = ROOT / "surgery"


def rows(heading: str) -> list[list[str]]:
    section = TEXT.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line[:2] == "| "][
        1:
    ]


def test_each_room_is_named_and_exists() -> None:
    named = {name for row in rows("Rooms") for name in re.findall(r"`([\w./<>]+)`", row[0])}
    for name in named:
        assert (PACKAGE / name.partition("<")[0]).exists(), name
    rooms = {path.name for path in PACKAGE.iterdir() if path.is_dir() and (path / "__init__.py").is_file()}
    assert rooms == {name.partition("/")[0] for name in named if "/" in name}


def test_a_change_opens_at_most_three_files_that_exist() -> None:
    changes = rows("Where a change goes")
    assert len(changes) == 10
    for change, files in changes:
        names = re.findall(r"`([\w./]+\.(?:py|toml))`", files)
        assert len(names) + files.count("a new file") <= 3, change
        folder = ""
        for name in names:
            folder = name.rpartition("/")[0] if "/" in name else folder
            path = name if "/" in name or (PACKAGE / name).is_file() else f"{folder}/{name}"
            assert (PACKAGE / path).is_file(), f"{change}: {path}"
