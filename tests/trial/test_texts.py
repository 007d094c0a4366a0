"""The texts of a trial: nothing that is measured is calibrated on."""

from __future__ import annotations

import pytest

from surgery.data import Document
from surgery.trial.texts import MOST_TEXTS, TrialText, count_tokens, divide_texts, missing_text, write_texts


def texts(count: int, tokens: int) -> list[TrialText]:
    """Texts of one line for each token, which holds its own number."""
    return [TrialText(f"{n}.txt", "".join(f"{n}-{line}\n" for line in range(tokens)), tokens) for n in range(count)]


@pytest.mark.parametrize(("count", "whole"), [(3, False), (15, False), (16, True), (40, True)])
def test_the_parts_share_no_line(count: int, whole: bool) -> None:
    given = texts(count, 900)
    division = divide_texts(given, 256)
    assert division.whole is whole
    calibrated, measured = (
        {line for text in part for line in text.text.splitlines()} for part in (division.calibrate, division.measure)
    )
    assert calibrated and measured and not calibrated & measured
    assert len(division.measure) >= min(8, count) and all(text.tokens >= 256 for text in division.measure)
    if not whole:
        assert len(calibrated | measured) == 900 * count
        assert len(measured) == pytest.approx(300 * count, rel=0.05)


def test_too_little_text_is_said_with_the_numbers() -> None:
    assert missing_text(texts(16, 2048), 512) is None
    assert "the longest of 1 text has 900 tokens, and none leaves 512" in str(missing_text(texts(1, 900), 512))
    assert "the longest text to calibrate on has 1,333 tokens" in str(missing_text(texts(2, 2000), 512))


def test_long_and_many_texts_are_cut_and_it_is_said() -> None:
    class Tokenizer:
        def __call__(self, text: str, **_: object) -> dict[str, list[int]]:
            return {"input_ids": [0] * len(text)}

    documents = [Document(f"a/{number}.txt", "x" * 100 + str(number)) for number in range(MOST_TEXTS + 4)]
    found, said = count_tokens(documents, Tokenizer(), 1)  # type: ignore[arg-type]
    assert len(found) == MOST_TEXTS and {text.tokens for text in found} == {64}
    assert "4 of 100 texts" in said[0] and "after the first 64 characters" in said[1]


def test_names_of_files_cannot_leave_the_folder(tmp_path: object) -> None:
    from pathlib import Path

    folder = Path(str(tmp_path))
    division = divide_texts([TrialText("../../evil\x1b.txt", "a line\n" * 900, 900)], 256)
    calibrate, measure = write_texts(division, folder / "texts")
    written = [path for path in folder.rglob("*") if path.is_file()]
    assert sorted(path.parent for path in written) == sorted([calibrate, measure])
    assert {path.name for path in written} == {"00-evil-.txt"}
