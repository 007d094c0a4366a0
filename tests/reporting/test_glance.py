"""What a page says first: what the model is, whether to keep it, what that rests on, and what is missing."""

from __future__ import annotations

from typing import Any

import pytest

from surgery.reporting import glance
from surgery.reporting.formats import TIMES
from tests.reporting.data import result

RUN = {"label": "finetune", "rows": [], "tokens": 20_000, "texts": ["notes/texts/*.txt"], "controls": []}


def verdict(data: dict[str, Any]) -> dict[str, Any]:
    return data["verdicts"][0]


def test_the_title_says_what_the_model_is() -> None:
    data = result()
    (use,) = data["models"]
    assert glance.identity(data, use) == "small with ssmax anchored, 134,515,278 parameters, 24 learned numbers"
    data["trainings"] = {use["fingerprint"]: [RUN]}
    assert glance.identity(data, use).endswith("trained on 20,000 tokens")
    assert glance.identity(result(base=None), use).startswith("ssmax anchored, ")
    assert glance.identity(data, data["against"]).startswith("llama, "), "a base without operations"


@pytest.mark.parametrize(
    ("word", "begins"),
    [
        ("gained", "Yes, for texts like these up to 1,024 tokens: it gained in Loss by position and lost nothing"),
        ("lost", "Not as it is: it lost in Loss by position"),
        ("kept", "Only for what else it gives you: up to 1,024 tokens it lost nothing"),
        ("no difference", "Nothing speaks against it, and nothing for it"),
        ("undecided", "That cannot be said yet"),
    ],
)
def test_whether_to_keep_it(word: str, begins: str) -> None:
    data = result(word=word)
    sentence = glance.keep_it(data, verdict(data))
    assert sentence.startswith(begins)
    assert "(not measured here: retrieval, tasks, speed and memory)." in sentence
    whole = result(word=word, everything=True)
    assert "not measured" not in glance.keep_it(whole, verdict(whole))


def test_both_sides_of_a_mixed_verdict() -> None:
    data = result()
    own = {**verdict(data), "word": "mixed"}
    own["findings"] = [
        {"measure": "A", "word": "gained", "sentence": ""},
        {"measure": "B", "word": "lost", "sentence": ""},
    ]
    assert glance.keep_it(data, own).startswith("That depends on your use: it gained in A and lost in B")


@pytest.mark.parametrize("word", ["gained", "lost"])
def test_what_is_undecided_is_not_said_to_be_nothing(word: str) -> None:
    data = result()
    findings = [{"measure": name, "word": sort, "sentence": ""} for name, sort in (("A", word), ("B", "undecided"))]
    sentence = glance.keep_it(data, {**verdict(data), "word": word, "findings": findings})
    assert f"it {word} in A; whether it {'lost' if word == 'gained' else 'gained'} in B is undecided" in sentence
    assert "nothing" not in sentence


def test_the_length_is_relative_to_the_trained_one() -> None:
    data = result()
    (said,) = glance.rests_on(data, verdict(data))
    assert "up to 1,024 tokens, 12% of the 8,192" in said and "beyond was not measured" in said
    data["models"][0]["trained_length"] = 512
    (said,) = glance.rests_on(data, verdict(data))
    assert f"2.0 {TIMES} of the 512" in said and "beyond" not in said


SAME = "It was trained on 1 of these 1 text:"
KIND = "It was trained on texts from the same place"
OTHER = "It was trained on other texts than these:"


@pytest.mark.parametrize(
    ("pattern", "begin"),
    [
        ("texts/*.txt", SAME),
        ("texts", SAME),
        ("texts/one.txt", SAME),
        ("texts/two.txt", KIND),
        ("text", OTHER),
        ("other/*.txt", OTHER),
        ("*.txt", SAME),
        ("one.txt", OTHER),
    ],
)
def test_training_on_the_same_kind_of_text_is_said(pattern: str, begin: str) -> None:
    data = result()
    data["trainings"] = {data["models"][0]["fingerprint"]: [{**RUN, "texts": [pattern]}]}
    said = glance.rests_on(data, verdict(data))[1]
    assert said.startswith(begin) and (begin is not OTHER or pattern in said)


@pytest.mark.parametrize(
    ("texts", "told"),
    [(["one.txt"], True), (["texts/one.txt"], True), (["ne.txt", "other/one.txt"], False), ([], False)],
)
def test_a_calibration_on_the_measured_texts_is_said(texts: list[str], told: bool) -> None:
    data = result()
    data["models"][0]["calibrated_on"] = texts
    said = [one for one in glance.rests_on(data, verdict(data)) if "were chosen on 1 of these 1 text:" in one]
    assert bool(said) is told


def test_rows_of_speed_and_of_what_is_missing() -> None:
    whole = glance.rows(result(everything=True), 0)
    assert whole[0] == ("prefill 1024, tokens per second", "820.1", "812.5")
    assert whole[1][0].startswith("cache of 1,024 tokens") and len(whole) == 2
    assert glance.rows(result(), 0) == [
        (name, "", "not measured") for name in ("retrieval", "tasks", "speed and memory")
    ]


def test_the_page_has_it_all_before_the_first_section() -> None:
    from surgery.reporting.drawings import draw_all
    from surgery.reporting.report import render_markdown, render_page

    data = result()
    drawings = draw_all(data, [[]])
    page = render_page(data, drawings, provenance={})
    assert "<title>small-ssmax: small with ssmax anchored" in page
    first = page.partition("<h2>")[0]
    for words in ("Keep it?", "12% of the 8,192", "not measured", "24 learned numbers"):
        assert words in first, words
    assert "Keep it? Not as it is" in render_markdown(data, None, provenance={})
