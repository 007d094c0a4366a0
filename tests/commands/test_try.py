"""``surgery try``: the plan, the recommendation and the errors on the command line."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.commands.conftest import program
from tests.tokenizers import save_tiny_tokenizer


@pytest.fixture(scope="module")
def runnable(make_source: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = make_source("llama", max_position_embeddings=1024)
    folder = Path(shutil.copytree(made, tmp_path_factory.mktemp("model") / "tiny"))
    save_tiny_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("words")
    for number in range(16):
        lines = (f"Paragraph {line} speaks of river {number} and of what is beside it." for line in range(70))
        (folder / f"{number}.txt").write_text("\n\n".join(lines), encoding="utf-8")
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
