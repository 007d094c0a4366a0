"""``surgery try``: the plan, the recommendation and the errors on the command line."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.commands.conftest import program
from tests.tokenizers import with_tokenizer, write_rivers


@pytest.fixture(scope="module")
def runnable(make_source: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = make_source("llama", max_position_embeddings=1024)
    return with_tokenizer(made, tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("words")
    write_rivers(folder)
    return folder


def test_a_dry_run_numbers_the_steps_and_writes_nothing(
    surgery: Any, runnable: Path, words: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("surgery.loading.load_model", None)
    ran = surgery("try", runnable, "--text", words, "--length", "512", "--minutes", "600", "--dry-run")
    assert ran.code == 0, ran.err
    for part in ("1 of 5", "4 of 5", "calibrate bias", "measure 5 models", "on this processor"):
        assert part in ran.out
    assert ran.out.splitlines()[-1] == f"Next: surgery try {runnable} --text {words} --length 512 --minutes 600"
    document = surgery("try", runnable, "--text", words, "--length", "512", "--dry-run", "--json").document()
    assert document["kind"] == "trial-plan" and document["length"] == 512
    assert not list(tmp_path.iterdir())


def test_a_finished_trial_is_said_in_words_and_as_json(
    surgery: Any, runnable: Path, words: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from surgery.errors import NoChoiceError
    from surgery.operations import OPERATIONS

    def none(*_: object, **__: object) -> None:
        raise NoChoiceError("no choice keeps the loss")

    for operation in OPERATIONS.values():
        if operation.calibrates:
            monkeypatch.setattr(operation.calibration_package(), "calibrate", none)
    given = ("try", runnable, "--text", words, "--length", "512", "-o", tmp_path / "out")
    ran = surgery(*given)
    assert ran.code == 0, ran.err
    assert ran.out.startswith("Nothing here helps your model at this length.")
    assert "step 2 of 5: calibrate constant" in ran.err and "the trial takes" in ran.err
    for part in ("windows: no choice keeps the loss", "Key-value cache at 512", "Not measured:", "trial.json"):
        assert part in ran.out
    document = surgery(*given, "--json").document()
    assert document["kind"] == "trial" and document["recommended"] == []


def test_one_bar_shows_the_whole_trial(
    surgery: Any, runnable: Path, words: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its steps weigh what the plan says, and what is done stays done."""
    from surgery import trial
    from surgery.commands import progress
    from surgery.trial.plan import TrialStep

    steps = [TrialStep("inspect", "inspect", 0.0), TrialStep("a", "calibrate a", 30.0), TrialStep("b", "measure", 70.0)]
    shown: list[tuple[str, float, float | None]] = []

    class StoppedError(Exception):
        pass

    def try_model(*_: Any, on_plan: Any, on_step: Any, on_progress: Any, **__: Any) -> None:
        on_progress(0, 1, "timing the model")
        on_plan(SimpleNamespace(steps=steps, estimate="long", length=512, left_out=()))
        on_step(1, 3, steps[0])
        on_step(2, 3, steps[1])
        on_progress(1, 3, "haystacks")
        on_step(3, 3, steps[2])
        for done in (1, 2, 0):  # the last counts anew
            on_progress(done, 2, "recall")
        raise StoppedError

    def line_of(task: Any) -> str:
        shown.append((task.description, task.completed, task.total))
        return ""

    monkeypatch.setattr(trial, "try_model", try_model)
    monkeypatch.setattr(progress, "LINE_EVERY", 0.0)
    monkeypatch.setattr(progress, "line_of", line_of)
    surgery("try", runnable, "--text", words)
    assert shown == [
        ("timing the model", 0, None),
        ("timing the model", 0, 100),
        ("timing the model", 0, 100),
        ("step 2 of 3: haystacks", 10, 100),
        ("step 2 of 3: haystacks", 30, 100),
        ("step 3 of 3: recall", 65, 100),
        ("step 3 of 3: recall", 100, 100),
        ("step 3 of 3: recall", 100, 100),
    ]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--length", "4096"), "--length 4096: the model was trained at 1024 tokens"),
        (("--minutes", "0"), "--minutes 0: must be above 0"),
        (("--dtype", "int3"), "--dtype"),
    ],
)
def test_wrong_flags_are_refused(surgery: Any, runnable: Path, words: Path, flags: Any, message: str) -> None:
    ran = surgery("try", runnable, "--text", words, *flags)
    assert ran.code == 2 and message in " ".join(ran.err.split())


def test_help_loads_no_torch() -> None:
    ran = program("try", "--help", PYTHONVERBOSE="1")
    assert ran.code == 0 and "surgery.commands.try_" in ran.err
    assert "import 'torch'" not in ran.err and "import 'transformers'" not in ran.err
