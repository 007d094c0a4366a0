"""The page in a real browser: it renders from disk, without an error, with every picture to be seen."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.reporting.data import HISTORIES, result, write_files

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed: pip install playwright"
    )
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine: apt-get install chromium")
    with playwright.sync_playwright() as running:
        # Containers often run as root, where the sandbox of Chromium does not start.
        opened = running.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_files(
        result(everything=True),
        tmp_path_factory.mktemp("page"),
        histories=HISTORIES,
        provenance={"command": "surgery evaluate small-ssmax --against small", "measured": "2026-01-01"},
    )


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_it_renders(browser: Any, page_file: Path, tmp_path: Path, scheme: str, width: int) -> None:
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    said: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(page_file.as_uri())
    folded = page.locator("details summary", has_text="Neither good nor bad")
    assert folded.count() == 1 and sum(picture.is_visible() for picture in page.locator("img").all()) == 6
    folded.click()
    page.screenshot(path=tmp_path / "page.png", full_page=True)
    assert said == []
    assert [url for url in asked if not url.startswith("data:")] == [page_file.as_uri()]
    pictures = page.locator("img").all()
    assert len(pictures) == 9
    for picture in pictures:
        box = picture.bounding_box()
        assert picture.is_visible() and box["width"] > 200 and box["height"] > 60
        loaded = picture.evaluate("image => [image.complete, image.naturalWidth, image.currentSrc.slice(0, 26)]")
        assert loaded[0] and loaded[1] > 0 and loaded[2] == "data:image/svg+xml;base64,"
    # The sources for the two schemes differ, and the page follows the scheme.
    source = page.locator("source").first.get_attribute("srcset")
    shown = page.locator("img").first.evaluate("image => image.currentSrc")
    assert (shown == source) is (scheme == "dark")
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert background == ("rgb(255, 255, 255)" if scheme == "light" else "rgb(21, 24, 28)")
    # Wide tables scroll within themselves; the page does not.
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert page.locator("strong").first.inner_text() == "Lost"
    assert (tmp_path / "page.png").stat().st_size > 50_000
    page.close()


def test_it_prints(browser: Any, page_file: Path, tmp_path: Path) -> None:
    page = browser.new_page(color_scheme="dark")
    page.goto(page_file.as_uri())
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"  # paper is white
    source = page.locator("source").first.get_attribute("srcset")
    assert page.locator("img").first.evaluate("image => image.currentSrc") != source
    # On paper nothing scrolls, and a number is not cut in two: its row is as high as one line.
    page.set_viewport_size({"width": 718, "height": 1000})  # A4 between Chromium's margins
    heights = page.evaluate(
        "[...document.querySelectorAll('table:not(.text) tbody tr')].map(row => row.getBoundingClientRect().height)"
    )
    assert len(heights) > 10 and max(heights) < 30
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    # A verdict and a picture stay on one page.
    for kept in (".verdict", "figure"):
        assert page.locator(kept).first.evaluate("one => getComputedStyle(one).breakInside") == "avoid"
    page.pdf(path=tmp_path / "page.pdf", format="A4")
    assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF")
    page.close()
