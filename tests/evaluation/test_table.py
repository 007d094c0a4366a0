"""A result of every measure as a table and as pictures."""

from __future__ import annotations

from pathlib import Path

import pytest

from surgery.evaluation import EvaluationResult, evaluate
from tests.evaluation.test_workload import SUITE


@pytest.fixture(scope="module")
def result(trained: Path, operated: Path, texts: Path) -> EvaluationResult:
    return evaluate(operated, against=trained, text=texts, suite=SUITE)


def test_every_section_has_rows(result: EvaluationResult, trained: Path, operated: Path) -> None:
    frame = result.to_frame()
    for word in ("loss, all tokens", "sliding, all tokens", "right tokens, all prompts", "greatest attention weight"):
        assert frame["what"].str.contains(word, regex=False).any(), word
    assert frame["what"].str.contains("prefill 16, tokens per second").any()
    assert set(frame["model"]) == {operated.name, trained.name}, "attention of the base has its own rows"
    row = frame[frame["what"] == "loss, all tokens"].iloc[0]
    measured = result.section("loss").results[0].overall
    assert (row["value"], row["base"]) == (measured.loss.value, measured.base_loss.value)
    assert row["difference"] == measured.difference.value == 0.0 and row["verdict"] == "no difference"


def test_the_verdict_comes_first(result: EvaluationResult, operated: Path) -> None:
    printed = str(result)
    assert printed.startswith(f"{operated.name}: no difference.") and "loss, all tokens" in printed
    assert f"<strong>{operated.name}: no difference." in result._repr_html_()


def test_all_pictures_with_one_call(result: EvaluationResult, tmp_path: Path) -> None:
    pictures = result.plot()
    assert {"loss-by-position", "paired-difference"} <= {picture.name for picture in pictures}
    assert pictures._repr_html_().count("<img") == len(pictures)
    saved = pictures.save(tmp_path / "pictures")
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in saved)
    assert "PNG" not in repr(pictures), "a notebook without HTML is not flooded with bytes"
