"""The pages as a site: in the order of the lists of contents, strictly built, and without a network."""

from __future__ import annotations

import json
import re
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest

from docs import site
from tests.documentation.links import ROOT

needs_mkdocs = pytest.mark.skipif(find_spec("material") is None, reason="mkdocs-material is not installed: make docs")


def named() -> list[str]:
    return [
        page
        for entry in site.navigation(ROOT)
        for pages in entry.values()
        for page in ([pages] if isinstance(pages, str) else pages)
    ]


def test_every_page_is_in_the_navigation_once() -> None:
    folders = (ROOT / "docs" / name for name in ("guide", "reference", "results"))
    pages = {path.relative_to(ROOT).as_posix() for folder in folders for path in folder.glob("*.md")}
    assert pages <= set(named()) and len(named()) == len(set(named()))
    assert all((ROOT / page).is_file() for page in named())


@needs_mkdocs
def test_the_site(tmp_path: Path) -> None:
    site.build(tmp_path / "site")
    texts = json.loads((tmp_path / "site" / "search" / "search_index.json").read_text())["docs"]
    found = [entry["location"] for entry in texts if "--max-loss-increase" in entry["text"]]
    assert "docs/reference/commands.html#surgery-verify" in found, "the search knows the options of each command"
    for page in (tmp_path / "site").rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        loaded = re.findall(r"<(?:script|img|iframe)[^>]*src=\"([^\"]*)|<link[^>]*stylesheet[^>]*href=\"([^\"]*)", text)
        assert loaded and not [name for pair in loaded for name in pair if re.match("(https?:)?//", name)], page


@needs_mkdocs
@pytest.mark.parametrize("wrong", ["[a](no-such-page.md)", "[a](convert.md#no-such-heading)"])
def test_a_dead_link_stops_the_build(tmp_path: Path, wrong: str) -> None:
    root = tmp_path / "root"
    root.mkdir()
    site.stage(root)
    shutil.copytree(ROOT / "docs", root / "docs", dirs_exist_ok=True)
    with (root / "docs" / "guide" / "zoo.md").open("a", encoding="utf-8") as file:
        file.write(f"\n{wrong}\n")
    with pytest.raises(SystemExit):
        site.build(tmp_path / "site", root)
