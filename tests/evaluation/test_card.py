"""What was measured goes into the card, and a loss that rises too much fails the verification."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import surgery
import surgery.commands.evaluate
import surgery.commands.verify
from surgery.commands import console
from surgery.commands.app import app
from surgery.errors import UsageError
from tests.tokenizers import save_tiny_tokenizer, write_texts


@pytest.fixture(scope="module")
def place(make_source: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``source``, ``converted`` and ``texts``."""
    folder = tmp_path_factory.mktemp("card")
    shutil.copytree(make_source("llama"), folder / "source")
    save_tiny_tokenizer(folder / "source")
    surgery.convert(folder / "source", "ssmax", form="paper", output=folder / "converted")
    write_texts(folder / "texts")
    return folder


def test_the_card_shows_the_last_evaluation_and_keeps_it(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    given = ["--against", "source", "--text", "texts", "--suite", "loss", "--length", "48", "-o", "out", "-q"]
    assert console.run(app, ["evaluate", "source", *given, "--card"]) == 2  # before anything is measured
    assert not Path("out").exists()
    assert console.run(app, ["evaluate", "converted", *given, "--card"]) == 0
    card = Path("converted/README.md").read_text()
    assert (
        "## Evaluation" in card and "| all |" in card and "surgery evaluate converted" not in card.split("## Eval")[0]
    )
    (run,) = json.loads(Path("converted/surgery/evaluate.json").read_text())["runs"]
    assert run["markdown"] in card and run["command"].startswith("surgery evaluate converted")

    verification = surgery.verify("converted", files_only=True)
    card = Path("converted/README.md").read_text()
    assert verification.failed == () and "## Verification" in card and run["markdown"] in card
    surgery.revert("converted", output="back")
    assert sorted(path.name for path in Path("back").iterdir()) == sorted(
        path.name for path in Path("source").iterdir()
    )


def test_a_budget_for_the_loss(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    given = ["verify", "converted", "--against", "source", "--text", "texts", "--length", "48", "--json"]
    assert console.run(app, [*given, "--max-loss-increase", "5"]) == 0
    (check,) = [one for one in json.loads(capsys.readouterr().out)["checks"] if one["name"] == "loss"]
    assert check["status"] == "passed" and check["bound"] == 5 and "95% interval" in check["detail"]
    assert console.run(app, [*given, "--max-loss-increase", "-5"]) == 4
    (check,) = [one for one in json.loads(capsys.readouterr().out)["checks"] if one["name"] == "loss"]
    assert check["status"] == "failed"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_loss_increase": 0.1}, "needs the source"),
        ({"max_loss_increase": 0.1, "against": "source"}, "needs texts"),
        ({"max_loss_increase": 0.1, "against": "source", "text": ["texts"], "files_only": True}, "files_only=True"),
        ({"max_loss_increase": 0.1, "against": "source", "text": ["texts"], "layers": 1}, "whole model"),
        ({"text": ["texts"]}, "without a loss limit"),
    ],
)
def test_what_a_budget_needs(
    place: Path, monkeypatch: pytest.MonkeyPatch, arguments: dict[str, Any], message: str
) -> None:
    monkeypatch.chdir(place)
    with pytest.raises(UsageError, match=message):
        surgery.verify("converted", **arguments)


def test_texts_are_looked_at_before_anything_else(place: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setattr("surgery.verification.verification.file_checks", None)
    with pytest.raises(UsageError, match="holds no file"):
        surgery.verify("converted", against="source", max_loss_increase=0.1, text=[tmp_path])
