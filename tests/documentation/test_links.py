"""Every link and anchor in the project's Markdown leads somewhere; each folder of pages has a list of contents."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.documentation.links import ROOT, anchors, broken, links, module_file, pages

FOLDERS = [ROOT / "docs" / name for name in ("guide", "reference", "results")]


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_and_anchors_lead_somewhere(page: Path) -> None:
    assert broken(page, page.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_the_contents_name_every_page(folder: Path) -> None:
    contents = folder / "README.md"
    named = {target.partition("#")[0] for target in links(contents.read_text(encoding="utf-8"))}
    assert {page.name for page in folder.glob("*.md")} - {"README.md"} <= named
    assert f"{folder.name}/README.md" in links((ROOT / "docs" / "README.md").read_text(encoding="utf-8"))


def test_pictures_and_data_of_the_results_are_shown_or_named() -> None:
    """A file that no page names is lost to readers."""
    text = "".join(page.read_text(encoding="utf-8") for page in pages())
    for folder in ("images", "data"):
        for path in sorted((ROOT / "docs" / "results" / folder).iterdir()):
            assert f"{folder}/{path.name}" in text, path.name


def test_files_that_pages_name_in_code_exist() -> None:
    """`docs/...`, `bench/...`, `tests/...` and modules of `surgery/` in code spans, and modules after `python -m`."""
    for page in pages():
        text = page.read_text(encoding="utf-8")
        # A checkpoint has a folder surgery/ too, with JSON in it.
        named = re.findall(
            r"`((?:docs|bench|examples|tests|suites|recipes)/[\w./-]*|surgery/[\w/]*(?:/|\.py|\.toml))`", text
        )
        for path in named:
            assert (ROOT / path).exists() or page.name == "CHANGELOG.md", f"{page.name}: {path}"
        for module in re.findall(r"python -m ((?:bench|docs)\.[\w.]+)", text):
            assert module_file(module).is_file(), f"{page.name}: {module}"
        for path in re.findall(r"pytest (tests/[\w./-]+)", text):
            assert (ROOT / path).exists(), f"{page.name}: {path}"


def test_the_check_finds_what_is_broken() -> None:
    page = ROOT / "README.md"
    text = "# A *title*, here\n[a](missing.md) [b](#a-title-here) [`c`](docs/README.md#nowhere) ![d](https://e.org/f.png)\n"
    assert broken(page, text) == ["missing.md: no such file", "docs/README.md#nowhere: no such heading"]
    assert anchors("# One\n## One\n") == {"one", "one-1"}
    assert links("```\n[a](b)\n```\n\n    [c](d)\n\n`[e](f)` [g [h]](i)\n") == ["i"]
