"""``python -m docs.site OUT``: the pages as a site, with search, built without a network.

The pages are the same Markdown files that a code host shows. They are copied beside the files that they link to; the
navigation has the order of the lists of contents. A link that leads nowhere, or a page that no list names, stops the
build. Needs mkdocs-material alone, not the package.
"""

from __future__ import annotations

import re
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
# What pages link to, beside the pages themselves.
FOLDERS = ("docs", "recipes", "suites", "examples")
# Heading in the navigation -> the page with the list of contents.
LISTS = {
    "Guide": "docs/guide/README.md",
    "Reference": "docs/reference/README.md",
    "Results": "docs/results/README.md",
}
_IGNORED = shutil.ignore_patterns("__pycache__", "*.py", "mkdocs.yml")
_LISTED = re.compile(r"\]\(([\w.-]+\.md)\)")


def navigation(root: Path) -> list[dict[str, Any]]:
    """The pages in the order in which the lists of contents name them; each has its own heading as title."""
    found: list[dict[str, Any]] = [{"Start": "README.md"}]
    for heading, contents in LISTS.items():
        page = Path(contents)
        named = dict.fromkeys(_LISTED.findall((root / page).read_text(encoding="utf-8")))
        found.append({heading: [contents, *((page.parent / name).as_posix() for name in named)]})
    return [*found, {"Project": ["docs/README.md", "CONTRIBUTING.md", "CHANGELOG.md"]}]


def stage(target: Path, root: Path = ROOT) -> None:
    """Copy the pages and what they link to."""
    for page in root.glob("*.md"):
        shutil.copy2(page, target / page.name)
    for folder in FOLDERS:
        shutil.copytree(root / folder, target / folder, ignore=_IGNORED)


def build(site: Path, root: Path = ROOT) -> None:
    """Build the site, strictly.

    Args:
        site: the new folder.
        root: of the project.

    Raises:
        Abort: of mkdocs: a link or a page is wrong; mkdocs has logged it.
    """
    from mkdocs.commands.build import build as build_site
    from mkdocs.config import load_config

    with tempfile.TemporaryDirectory(prefix="surgery-docs-") as scratch:
        staged = Path(scratch)
        stage(staged, root)
        config = load_config(
            str(ROOT / "docs" / "mkdocs.yml"),
            docs_dir=str(staged),
            site_dir=str(site.absolute()),
            nav=navigation(root),
            strict=True,
        )
        config.plugins.on_startup(command="build", dirty=False)
        build_site(config)
        config.plugins.on_shutdown()


if __name__ == "__main__":
    import logging

    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    build(Path(sys.argv[1] if len(sys.argv) > 1 else "build/site"))
