"""The table of ``bench/kvpress``: paired with the whole cache, from the cases that every side has finished."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from bench.harness import report
from bench.kvpress.case import Case, Continuation, read_cases, scores, unfinished, write_cases, write_result
from bench.kvpress.table import rows

CASES = [Case(f"loss-{number}", "loss", [1, 2], [Continuation([3, 4, 0], 2)]) for number in range(3)]


def test_changes_are_those_to_the_whole_cache_of_the_same_case(tmp_path: Path) -> None:
    for number, case in enumerate(CASES):
        whole = {"press": "none", "asked": 1.0, "share": 1.0, "loss": [float(number)], "exact": [True]}
        half = {"press": "half", "asked": 0.5, "share": 0.5, "loss": [number + 0.1 * (number + 1)], "exact": [False]}
        write_result(tmp_path / "kvpress" / f"{case.name}.json", [whole, half])
        if number < 2:
            own = {"press": "ours", "share": 0.4, "loss": [number + 0.01], "exact": [True]}
            write_result(tmp_path / "ours" / f"{case.name}.json", [own])
    found = {row["press"]: row for row in rows(CASES, tmp_path)}
    assert list(found) == ["none", "half", "ours"] and {row["cases"] for row in found.values()} == {2}
    assert found["half"]["loss, change"] == pytest.approx(0.15) and found["half"]["worst change"] == pytest.approx(0.2)
    assert found["half"]["loss, low"] >= 0.1 - 1e-9 and found["half"]["right, change"] == -1
    assert found["ours"]["loss, change"] == pytest.approx(0.01) and found["none"]["loss, change"] == 0


def test_a_press_is_compared_with_the_screened_model_of_its_share(tmp_path: Path) -> None:
    """Paired by case: two cases with the differences 0.09 and 0.19 have the mean 0.14, and resamples between them."""

    def row(press: str, share: float, loss: float, **asked: float) -> dict[str, Any]:
        return {"press": press, **asked, "share": share, "loss": [loss], "exact": [True]}

    for number, case in enumerate(CASES[:2]):
        half, third = row("half", 0.5, number + 0.1 * (number + 1), asked=0.5), row("third", 0.3, 4.0, asked=0.3)
        own = [row("none", 1.0, number, asked=1.0), half, third, row("more", 0.7, 5.0, asked=0.7)]
        write_result(tmp_path / "kvpress" / f"{case.name}.json", own)
        share = 0.508 - 0.01 * number  # of the case; 0.503 in the mean
        write_result(tmp_path / "near" / f"{case.name}.json", [row("near", share, number + 0.01)])
        write_result(tmp_path / "few" / f"{case.name}.json", [row("few", 0.295, 3.0)])
    found = {row["press"]: row for row in rows(CASES, tmp_path)}
    half = found["half"]
    assert half["screened"] == "near" and half["loss minus screened"] == pytest.approx(0.14)
    assert half["loss minus screened, low"] == pytest.approx(0.09)
    assert half["loss minus screened, high"] == pytest.approx(0.19)
    assert found["third"]["screened"] == "few" and found["third"]["loss minus screened"] == pytest.approx(1.0)
    for press in ("none", "near", "few", "more"):
        assert found[press]["screened"] is found[press]["loss minus screened"] is None, press


def test_without_presses_the_source_itself_is_the_whole_cache(tmp_path: Path) -> None:
    for number, case in enumerate(CASES):
        for press, share, more in (("none", 1.0, 0.0), ("ours", 0.995, 0.25)):
            row = {"press": press, "share": share, "loss": [number + more], "exact": [True]}
            write_result(tmp_path / press / f"{case.name}.json", [row])
    found = {row["press"]: row for row in rows(CASES, tmp_path)}
    assert found["ours"]["loss, change"] == pytest.approx(0.25) and found["none"]["loss, change"] == 0
    assert found["none"]["screened"] is found["ours"]["screened"] is None
    for case in CASES:
        (tmp_path / "none" / f"{case.name}.json").unlink()
    (tmp_path / "none").rmdir()
    with pytest.raises(SystemExit, match="no side has the whole cache"):
        list(rows(CASES, tmp_path))


def test_what_no_model_is_compared_with_is_printed_empty(capsys: pytest.CaptureFixture[str]) -> None:
    report("kvpress", [{"press": "none", "loss minus screened": None}], None)
    assert "None" not in capsys.readouterr().out


def test_cases_survive_a_file_and_finished_ones_are_left_out(tmp_path: Path) -> None:
    write_cases(CASES, tmp_path / "cases.json")
    assert read_cases(tmp_path / "cases.json") == CASES
    write_result(tmp_path / "ours" / "loss-1.json", [])
    assert [case.name for case, _ in unfinished(CASES, tmp_path, "ours")] == ["loss-0", "loss-2"]


def test_only_the_last_tokens_are_scored_from_the_logits_before_them() -> None:
    logits = torch.zeros(2, 5)
    logits[0, 4] = logits[1, 1] = 5.0  # right for the first scored token, wrong for the second
    found = scores(CASES[0], lambda tokens: logits if tokens.tolist() == [[3, 4]] else torch.empty(0))
    right, wrong = (-row.log_softmax(-1)[token] for row, token in zip(logits, (4, 0), strict=True))
    assert found["loss"] == [pytest.approx(float((right + wrong) / 2))] and found["exact"] == [False]
