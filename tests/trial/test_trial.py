"""A whole trial of a tiny model: interrupted, continued, and what it leaves."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch

from surgery.errors import NoChoiceError, UsageError
from surgery.evaluation.loss.token_losses import token_losses
from surgery.loading import load_model, load_tokenizer
from surgery.operations import OPERATIONS
from surgery.trial import TrialResult, plan, run, try_model
from tests.trial.conftest import LENGTH

STEPS = ["inspect", "constant", "bias", "windows", "measure"]


class StoppedError(Exception):
    """In place of Ctrl-C."""


@pytest.fixture(scope="module")
def trial(source: Path, texts: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[TrialResult, list[str]]:
    """A trial that is stopped before it measures and continued; with the steps that the two runs began."""
    output = tmp_path_factory.mktemp("trial") / "out"
    begun: list[str] = []

    def on_step(number: int, of: int, step: plan.TrialStep) -> None:
        assert (number, of) == (STEPS.index(step.name) + 1, len(STEPS))
        begun.append(step.name)
        if step.name == "measure" and len(begun) == len(STEPS):
            raise StoppedError

    how: dict[str, Any] = {"length": LENGTH, "output": output, "on_step": on_step}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "EFFORTS", (plan.Effort(0.33, 8, False),))
        with pytest.raises(StoppedError):
            try_model(source, texts, **how)
        patch.setattr(run, "make_plan", None)  # the plan of the first run is taken up
        for operation in OPERATIONS.values():
            if operation.calibrates:
                patch.setattr(operation.calibration_package(), "calibrate", None)  # and its calibrations
        return try_model(source, texts, **how), begun


def test_it_goes_on_where_it_stopped(trial: tuple[TrialResult, list[str]]) -> None:
    result, begun = trial
    assert begun == STEPS * 2
    assert [(one.model, one.other) for one in result.comparisons] == [
        *((name, "source") for name in ("constant", "bias", "windows", "equal-windows")),
        ("bias", "constant"),
        ("windows", "equal-windows"),
    ]
    assert not (result.folder / "models").exists() and set(result.seconds) == {*STEPS} - {"inspect"}
    kept = json.loads((result.folder / "trial.json").read_text())
    assert kept == json.loads(json.dumps(result.to_dict()))
    assert len(result.to_table().rows) == 3 * len(result.comparisons)


def test_the_numbers_are_those_of_the_converted_model(trial: tuple[TrialResult, list[str]], source: Path) -> None:
    from surgery.conversion import convert

    result, _ = trial
    (folder,) = {path.parent for path in (result.folder / "texts" / "measure").glob("*.txt")}
    own = result.folder.parent / "constant"
    record = OPERATIONS["ssmax"].calibration_package().read_calibration(result.folder / "constant.json")
    convert(source, "ssmax", calibration=record, output=own)
    tokenizer = load_tokenizer(source)
    (comparison,) = [one for one in result.comparisons if (one.model, one.other) == ("constant", "source")]
    for model, expected in ((own, comparison.loss.value), (source, comparison.loss.other)):
        loaded: Any = load_model(model)
        losses = []
        for path in sorted(folder.glob("*.txt"))[: comparison.loss.groups]:
            ids = tokenizer(path.read_text(), add_special_tokens=False)["input_ids"][:LENGTH]
            losses.append(token_losses(loaded, torch.tensor([ids])).double().mean().item())
        assert comparison.loss.groups == 8 and sum(losses) / 8 == pytest.approx(expected, abs=1e-4)
    assert comparison.loss.change == pytest.approx(comparison.loss.value - comparison.loss.other)


def test_its_commands_run(
    trial: tuple[TrialResult, list[str]], source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """Those of every candidate, whatever is recommended."""
    from surgery.commands import console
    from surgery.commands.app import app
    from surgery.loading import RunOptions
    from surgery.trial.folder import TrialFolder
    from surgery.trial.preparation import prepare
    from surgery.trial.run import TrialRun

    result, _ = trial
    monkeypatch.chdir(tmp_path)
    texts = result.folder / "texts" / "measure"
    prepared = prepare(source, [result.folder / "texts"], LENGTH, None, RunOptions())
    folder = TrialFolder(result.folder)
    made = TrialRun(str(source), None, prepared, folder, None, None)
    records = {
        one.name: OPERATIONS[one.operation].calibration_package().read_calibration(folder.calibration(one.name))
        for one in prepared.tried
        if one.candidate.derived_from is None
    }
    commands = made._commands(list(records), records)
    words = [shlex.split(command) for command in commands]
    assert [line[1] for line in words].count("merge") == 1, "of constant alone"
    for line in words:
        if line[1] == "evaluate":
            assert line[-2:] == ["--text", texts.as_posix()]
        else:
            assert console.run(app, line[1:]) == 0, capsys.readouterr().err
    assert (tmp_path / "tiny-plain" / "config.json").is_file()


def test_a_folder_of_another_trial_is_kept(trial: tuple[TrialResult, list[str]], source: Path, texts: Path) -> None:
    result, _ = trial
    with pytest.raises(UsageError, match="holds a trial of another model"):
        try_model(source, [texts / "0.txt", *texts.glob("1*.txt")], length=256, output=result.folder)
    with pytest.raises(UsageError, match="holds a trial of 10 minutes, not 9"):
        try_model(source, texts, length=LENGTH, minutes=9, output=result.folder)
    assert (result.folder / "trial.json").is_file()
    other = result.folder.parent / "other"
    other.mkdir()
    (other / "mine.txt").write_text("mine")
    for force in (False, True):
        with pytest.raises(UsageError, match=r"not of a trial: mine\.txt"):
            try_model(source, texts, output=other, force=force)


def test_where_no_calibration_finds_anything_nothing_helps(
    source: Path, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*_: object, **__: object) -> None:
        raise NoChoiceError("no choice keeps the loss")

    for operation in OPERATIONS.values():
        if operation.calibrates:
            monkeypatch.setattr(operation.calibration_package(), "calibrate", none)
    result = try_model(source, texts, length=LENGTH, output=tmp_path / "out")
    assert result.recommended == () and result.commands == () and result.comparisons == ()
    assert result.sentence == "Nothing here helps your model at this length."
    assert all("no choice keeps the loss" in finding.sentence for finding in result.findings)
    assert "Nothing here helps" in str(result)


def test_an_error_of_another_kind_ends_the_trial(
    source: Path, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise UsageError("something else")

    monkeypatch.setattr(OPERATIONS["ssmax"].calibration_package(), "calibrate", broken)
    with pytest.raises(UsageError, match="something else"):
        try_model(source, texts, length=LENGTH, output=tmp_path / "out")
    assert not (tmp_path / "out" / "trial.json").exists()
