"""The page is self-contained, escapes its content, and its words agree with the numbers."""

from __future__ import annotations

import base64
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from surgery.reporting import replace_file
from surgery.reporting.drawings import Drawings, draw_all
from surgery.reporting.report import render_markdown, render_page
from tests.reporting.data import HISTORIES, result, write_files

HOSTILE = '<script>alert("1")</script>$\\frac{$&\' x'
VOID = {"meta", "source", "img", "br", "link"}


class Page(HTMLParser):
    """Tags with their attributes, text, and whether every element that opens is closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open[-1:] != ["style"]:
            self.text.append(data)

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def _write(folder: Path, data: dict[str, Any], **options: Any) -> tuple[str, Page]:
    options.setdefault("provenance", {"command": "surgery evaluate small-ssmax", "version of": {"torch": "2.13.0"}})
    text = write_files(data, folder, **options).read_text(encoding="utf-8")
    return text, Page(text)


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, Page]:
    folder = tmp_path_factory.mktemp("report")
    return (folder, *_write(folder, result(everything=True), histories=HISTORIES))


def test_samples_are_text_and_equal_ones_are_folded(full: tuple[Path, str, Page]) -> None:
    _, text, page = full
    assert "<script>" not in text and "<i>" not in text and "<b>" not in text
    assert not {"\x1b", "\u202e"} & set(text) and "\\x1b[31m" in text
    first, second = (tag for tag in page.all("details") if tag.get("class") == "sample")
    assert "open" in first and "open" not in second
    assert "differs after 1 token" in page.words
    assert "texts/two.txt, after 100 tokens: the model adds what the base adds" in page.words
    assert page.words.count("and so on.") == 1


def test_samples_without_a_base_are_open(tmp_path: Path) -> None:
    _, page = _write(tmp_path, result(base=None, everything=True))
    samples = [tag for tag in page.all("details") if tag.get("class") == "sample"]
    assert len(samples) == 2 and all("open" in tag for tag in samples)
    assert "what the base adds" not in page.words and "differs" not in page.words


def test_samples_in_the_card_cannot_break_its_table(full: tuple[Path, str, Page]) -> None:
    folder, _, _ = full
    card = (folder / "report.md").read_text(encoding="utf-8")
    assert not {"\x1b", "\u202e"} & set(card)
    (line,) = [line for line in card.splitlines() if "alert" in line]
    assert line.startswith("| small-ssmax | the \\<script\\>") and line.endswith("\\`y\\` next |")
    assert "| small-ssmax | the same as the base |" in card


@pytest.fixture(scope="module")
def drawings() -> Drawings:
    return draw_all(result(), [])


def test_a_map_of_parameters_that_are_all_at_their_start_is_not_drawn() -> None:
    data = result()
    (learned,) = data["models"][0]["learned"]
    ((before,),) = draw_all(data, []).operations
    learned.update(moved_mean=0.0, moved_most=0.0)
    ((after,),) = draw_all(data, []).operations
    assert len(after) == len(before) - 1


def test_it_writes_the_page_and_every_picture(full: tuple[Path, str, Page]) -> None:
    folder, _, page = full
    names = sorted(path.name for path in folder.iterdir())
    stems = [
        "attention-by-n",
        "attention-maps",
        "loss-by-position",
        "paired-difference",
        "rejected",
        "retrieval-abcdigits",
        "ssmax-multiplier",
        "ssmax-scale",
        "training",
    ]
    assert names == sorted(
        ["report.html", "report.md", *(f"{stem}.png" for stem in stems), *(f"{stem}.svg" for stem in stems)]
    )
    assert all((folder / name).read_bytes().startswith(b"\x89PNG") for name in names if name.endswith("png"))
    assert all(b"<svg" in (folder / name).read_bytes()[:1000] for name in names if name.endswith("svg"))
    assert len(page.all("img")) == len(page.all("source")) == len(stems)


def test_nothing_is_loaded_from_anywhere(full: tuple[Path, str, Page]) -> None:
    _, text, page = full
    assert not re.search(r"https?:|//[a-z]|url\(|@import", text, re.IGNORECASE)
    assert not [tag for tag, _ in page.tags if tag in ("script", "link", "iframe", "object", "embed")]
    for attributes in (*page.all("img"), *page.all("source")):
        uri = attributes.get("src") or attributes.get("srcset") or ""
        assert uri.startswith("data:image/svg+xml;base64,")
        svg = base64.b64decode(uri.split(",", 1)[1]).decode()
        # Namespaces and the document type are names; references would be loads.
        assert not re.search(r'href="(?!#|data:)', svg) and "<script" not in svg
    (policy,) = [meta["content"] for meta in page.all("meta") if meta.get("http-equiv") == "Content-Security-Policy"]
    assert policy is not None and policy.startswith("default-src 'none'; img-src data:;")


def test_it_can_be_read_without_seeing(full: tuple[Path, str, Page]) -> None:
    _, _, page = full
    assert page.all("html")[0]["lang"] == "en" and len(page.all("h1")) == 1
    alts = [attributes["alt"] for attributes in page.all("img")]
    assert all(alt and len(alt) > 60 for alt in alts)
    assert any("largest +0.1000 in layer 5, head 0" in alt for alt in alts if alt)
    assert all("scope" in attributes for attributes in page.all("th"))
    assert "prefers-color-scheme: dark" in full[1] and "@media print" in full[1]


def test_the_verdict_comes_first(full: tuple[Path, str, Page]) -> None:
    words = full[2].words
    assert words.index("Lost") < words.index("Loss by position, to 1,024 tokens The loss")
    assert "+0.0200" in words and "12.18 → 12.25" in words and "60.0% → 47.5%" in words
    assert "surgery evaluate small-ssmax" in words and "2.13.0" in words and "0123abcd" in words
    assert "layer 5, head 0 (n from 1 to 12)" in words and "±0.005" in words
    assert "arc_easy: acc,none" in words and "lm-eval run --model hf" in words and "(lower is better)" in words
    assert "812.5" in words and "1.009" in words and "538 MB" in words and "61 MB" in words


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    data = result(name=HOSTILE, base=HOSTILE)
    data["sections"][0]["data"]["texts"][0]["name"] = HOSTILE
    data["warnings"] = [HOSTILE]
    histories = [[{**HISTORIES[0][0], "label": HOSTILE}]]
    text, page = _write(tmp_path, data, histories=histories, provenance={HOSTILE: HOSTILE, "command": HOSTILE})
    assert "<script" not in text and not page.all("script")
    assert page.words.count(HOSTILE) >= 8  # heading, base, warning, text, caption, facts
    assert all(set(attributes) <= {"src", "alt"} for attributes in page.all("img"))


@pytest.mark.parametrize(
    ("word", "headline", "change"),
    [
        ("mixed", "Lost and gained", 0.0),
        ("kept", "Kept", 0.001),
        ("gained", "Gained", -0.03),
        ("no difference", "No difference", 0.0),
        ("undecided", "Undecided", 0.2),
    ],
)
def test_every_verdict_has_its_page(drawings: Drawings, word: str, headline: str, change: float) -> None:
    text = render_page(result(word=word, change=change), drawings, provenance={})
    page = Page(text)
    assert headline in page.words and f'class="verdict tone-{word.replace(" ", "-")}"' in text
    tones = set(re.findall(r"\.tone-([a-z-]+)", text))
    assert tones == {"kept", "no-difference", "lost", "gained", "undecided", "mixed"}


def test_without_a_base_there_is_no_verdict(tmp_path: Path) -> None:
    _, page = _write(tmp_path, result(base=None))
    assert "difference to the base" not in page.words and "Lost" not in page.words
    assert not (tmp_path / "paired-difference.png").exists()


def test_operations_with_a_bias_and_without_learned_numbers(tmp_path: Path) -> None:
    data = result()
    (first,) = data["models"][0]["learned"]
    first["values"]["bias"] = [[1.0] * 4] * 6
    first["start"]["bias"] = 1.0
    data["models"][0]["learned"].append(
        {**first, "form": "logn", "values": {}, "start": {}, "moved_most": None, "negative_heads": []}
    )
    _, page = _write(tmp_path, data)
    assert "no learned parameters" in page.words and not (tmp_path / "ssmax-scale-2.png").exists()
    assert (tmp_path / "ssmax-scale.png").exists() and (tmp_path / "ssmax-multiplier-2.png").exists()


def test_thresholds_are_drawn_like_scales(tmp_path: Path) -> None:
    data = result(base=None)
    (learned,) = data["models"][0]["learned"]
    rows = learned["values"]["scale"]
    learned |= {"name": "screening", "form": "gated", "reference_length": None, "start": {}, "moved_most": None}
    learned |= {"values": {"threshold": rows, "log2_window": rows}, "multipliers": [], "negative_heads": []}
    _, page = _write(tmp_path, data)
    assert (tmp_path / "screening-threshold.png").exists() and "come from a calibration" in page.words
    alts = [attributes["alt"] or "" for attributes in page.all("img")]
    assert any(alt.startswith("Heat map of threshold and log2_window by layer and head") for alt in alts)
    assert "below the median value" in page.words and "N =" not in page.words


@pytest.mark.slow
def test_the_same_data_give_the_same_bytes(full: tuple[Path, str, Page], tmp_path: Path) -> None:
    folder, text, _ = full
    again, _ = _write(tmp_path, result(everything=True), histories=HISTORIES)
    assert again == text
    for path in folder.glob("*.png"):
        assert (tmp_path / path.name).read_bytes() == path.read_bytes()


def test_a_second_file_replaces_the_first(tmp_path: Path) -> None:
    for data in (b"one", b"another"):
        assert replace_file(tmp_path / "new" / "page", data).read_bytes() == data
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["page"]


def test_histories_without_a_loss_draw_nothing(tmp_path: Path) -> None:
    runs = [{"label": "empty", "rows": []}, {"rows": [{"step": 1, "odd": 2}, {"step": 2, "loss": float("nan")}]}]
    _write(tmp_path, result(base=None), histories=[runs])
    assert not (tmp_path / "training.png").exists()


def test_several_models_side_by_side(tmp_path: Path) -> None:
    data = result()
    other = {**data["models"][0], "name": "another", "fingerprint": "c" * 64}
    data["models"].append(other)
    data["verdicts"].append({**data["verdicts"][0], "model": 1, "word": "gained"})
    (loss,) = data["sections"]
    loss["results"].append({**loss["results"][0], "model": 1})
    _, page = _write(tmp_path, data)
    assert "small-ssmax, another" in page.words and page.words.index("Lost") < page.words.index("Gained")
    assert (tmp_path / "paired-difference-2.png").exists()
    alt = page.all("img")[0]["alt"] or ""
    assert "small-ssmax: 2.5200" in alt and "another: 2.5200" in alt and "small: 2.5000" in alt


def test_the_markdown_is_for_a_card(full: tuple[Path, str, Page]) -> None:
    text = (full[0] / "report.md").read_text(encoding="utf-8")
    assert "**Lost.**" in text and "](loss-by-position.png)" in text and "| all | 2.5200 | 2.5000 |" in text
    assert "| arc_easy: acc,none | 0.4100 | 0.4300 |" in text and "`lm-eval run" in text and "| 812.5 | 820.1 |" in text
    tables = [line for line in text.splitlines() if line.startswith("|")]
    assert tables and not [line for line in tables if not line.endswith("|")]
    for before, after in zip(text.splitlines(), text.splitlines()[1:], strict=False):
        if after.startswith("|---"):  # a table needs its rule right below its head, with as many columns
            assert before.startswith("|") and before.count("|") == after.count("|")


def test_markdown_of_hostile_names_is_inert() -> None:
    data = result(name="[x](http://evil)|<b>", base=HOSTILE)
    text = render_markdown(data, None, provenance={})
    own = re.sub(r"</?(details|summary)>", "", text)
    assert r"\<script\>" in own and not re.search(r"(?<!\\)[<\[]", own)
