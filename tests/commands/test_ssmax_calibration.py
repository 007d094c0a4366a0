"""``surgery convert --to ssmax --calibrate``: from the command line to a verified, merged or reverted checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.tokenizers import with_tokenizer, write_paragraphs

SETTINGS = ("--lengths", "512", "--haystacks", "6", "--rounds", "1", "--max-loss-increase", "0.5")


@pytest.fixture(scope="module")
def runnable(make_source: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = make_source("llama", max_position_embeddings=1024)
    return with_tokenizer(made, tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("texts")
    write_paragraphs(folder)
    return folder


def test_calibrate_convert_inspect_verify_and_merge(surgery: Any, runnable: Path, texts: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    ran = surgery(
        "convert", runnable, "--to", "ssmax", "--form", "constant", "--calibrate", texts, *SETTINGS, "-o", out
    )
    assert ran.code == 0, ran.err
    assert "95% interval" in ran.out
    card, inspected = (out / "README.md").read_text(), surgery("inspect", out).out
    for text in (ran.out, card, inspected):
        flat = " ".join(text.replace("|", " ").split())
        for part in ("right before", "log-probability", "on average", "passages of 512 tokens", "of 12 heads"):
            assert part in flat, (part, flat)
    assert "have another temperature" in ran.out and "trained (surgery finetune)" not in ran.err
    record = surgery("inspect", out, "--json").document()["calibration"]
    assert record["settings"]["haystacks"] == 6 and record["recall"]["calibrated"] > record["recall"]["log_probability"]

    verified = surgery("verify", out, "--against", runnable)
    assert verified.code == 0
    assert verified.out.endswith(f"Next: surgery evaluate {out} --against {runnable} --suite recall\n")
    merged = tmp_path / "merged"
    assert surgery("merge", out, "-o", merged).code == 0
    assert json.loads((merged / "config.json").read_text())["model_type"] == "llama"

    again = tmp_path / "again"
    given = ("--to", "ssmax", "--form", "constant", "--calibration", out / "surgery" / "calibration.json")
    assert surgery("convert", runnable, *given, "-o", again).code == 0
    assert (again / "config.json").read_bytes() == (out / "config.json").read_bytes()


def test_an_interrupted_calibration_goes_on(
    surgery: Any, runnable: Path, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from surgery.operations.ssmax.calibration import gradients

    out, measured, real = tmp_path / "out", [], gradients.row_gradients

    def third_is_interrupted(*given: Any) -> Any:
        measured.append(1)
        if len(measured) == 3:
            raise KeyboardInterrupt
        return real(*given)

    monkeypatch.setattr(gradients, "row_gradients", third_is_interrupted)
    command = ("convert", runnable, "--to", "ssmax", "--calibrate", texts, *SETTINGS, "-o", out)
    ran = surgery(*command)
    assert ran.code == 130 and not out.exists()
    kept = tmp_path / "out.calibrating"
    assert f"finished steps are kept in {kept}; run the same command" in " ".join(ran.err.split())
    assert len(list(kept.iterdir())) == 2
    assert surgery(*command).code == 0
    assert len(measured) == 3 + 4 and not kept.exists()


@pytest.mark.parametrize("more", [(), ("--dry-run",)])
def test_texts_that_are_not_there_are_told_before_anything_runs(
    surgery: Any, runnable: Path, tmp_path: Path, more: tuple[str, ...]
) -> None:
    (tmp_path / "empty").mkdir()
    for name, message in (("empty", "holds no file"), ("nowhere", "no text file matches")):
        ran = surgery("convert", runnable, "--to", "ssmax", "--calibrate", tmp_path / name, *more)
        assert ran.code == 2 and message in ran.err
        assert "calibration takes" not in ran.err and "would take" not in ran.err and "--text" not in ran.err


def test_a_dry_run_shows_the_plan_and_runs_nothing(surgery: Any, runnable: Path, texts: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    ran = surgery("convert", runnable, "--to", "ssmax", "--calibrate", texts, *SETTINGS, "-o", out, "--dry-run")
    assert ran.code == 0 and "values not calibrated yet" in " ".join(ran.out.split()) and not out.exists()
    said = " ".join((ran.out + ran.err).split())
    assert "a calibration will choose the numbers" in said and "its work, in forward passes:" in said


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--start", "scale=0.1"), "start has no effect: the calibration chooses the start values"),
        (("--form", "logn"), "the form logn cannot be calibrated"),
        (("--save", "memory"), "--save is no option of ssmax"),
        (("--haystacks", "2"), "haystacks 2: Input should be greater"),
        (("--lengths", "4096"), "the model was trained at 1024 tokens"),
    ],
)
def test_flags_that_do_not_fit_are_refused(
    surgery: Any, runnable: Path, texts: Path, flags: tuple[str, ...], message: str
) -> None:
    ran = surgery("convert", runnable, "--to", "ssmax", "--calibrate", texts, *flags, "--dry-run")
    assert ran.code in {2, 3}
    assert message in " ".join(ran.err.split())


def test_of_two_operations_the_one_that_needs_it_is_calibrated(surgery: Any, runnable: Path, texts: Path) -> None:
    ran = surgery(
        "convert", runnable, "--to", "ssmax", "--to", "screening", "--calibrate", texts, "--lengths", "64", "--dry-run"
    )
    assert ran.code == 0
    plan = " ".join(ran.out.split())
    assert "thresholds and windows not calibrated yet" in plan and "start scale = 0" in plan
