"""What an evaluation would measure: the units and tokens that it then measures, without loading a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import surgery.commands.evaluate  # noqa: F401
from surgery.commands import console
from surgery.commands.app import app
from surgery.evaluation import evaluate, plan_evaluation
from surgery.evaluation.measures import MEASURES

PARTS = {
    "loss": {"length": 32, "documents": 2},
    "sliding": {"length": 32, "stride": 16, "tokens": 64, "documents": 1},
    "retrieval": {"task": "induction", "lengths": [32], "depths": [0.5], "samples": 2},
    "generation": {"length": 16, "documents": 1, "tokens": 4},
    "attention": {"length": 32, "documents": 1},
    "speed": {"prefill": [16], "decode_after": 8, "decode_tokens": 2, "repeats": 3},
}
SUITE = {"name": "short", "parts": [{"kind": kind, **options} for kind, options in PARTS.items()]}


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("surgery.evaluation.session.load_model", None)


@pytest.mark.usefixtures("no_model")
def test_every_part_on_every_model(trained: Path, operated: Path, texts: Path) -> None:
    plan = plan_evaluation(operated, against=trained, text=texts, suite=SUITE)
    alone = [part.kind for part in plan.parts if part.kind != "speed"]
    assert alone == [kind for kind in PARTS if kind != "speed" for _ in range(2)]
    assert [part.kind for part in plan.parts][-1] == "speed", "a model and its base in one part"
    assert plan.against == trained.name and plan.models == (operated.name,)
    assert all(part.seconds is not None and part.seconds > 0 for part in plan.parts)
    assert plan.seconds == pytest.approx(sum(part.seconds or 0 for part in plan.parts))
    assert set(PARTS) | {"tasks"} == set(MEASURES), "a new measure belongs into this test"


def test_the_tokens_that_the_run_counts(
    trained: Path, operated: Path, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Planned, told before the run, and counted in it; then nothing is left."""
    suite = {"name": "short", "parts": [{"kind": "loss", **PARTS["loss"]}]}
    given: dict[str, Any] = {"against": trained, "text": texts, "suite": suite, "results": tmp_path / "results"}
    planned = sum(part.tokens for part in plan_evaluation(operated, **given).parts)
    events: list[dict[str, Any]] = []
    evaluate(operated, on_event=events.append, **given)
    told = next(event for event in events if event["event"] == "plan")
    counted = [event for event in events if event["event"] == "tokens"][-1]
    assert planned == told["total"] == counted["done"] == counted["total"] == 2 * 2 * 32
    assert told["notes"] == [] and told["seconds"] >= 0
    tokenized = [event for event in events if event["event"] == "tokenizing"]
    assert tokenized[0]["documents"] == 1 and tokenized[0]["of"] >= 2
    monkeypatch.setattr("surgery.evaluation.session.load_model", None)
    assert plan_evaluation(operated, **given).parts == ()


@pytest.mark.usefixtures("no_model")
def test_a_length_beyond_the_positions_is_said_before(trained: Path, texts: Path) -> None:
    positions = json.loads((trained / "config.json").read_text())["max_position_embeddings"]
    suite = {"name": "long", "parts": [{"kind": "retrieval", "task": "induction", "lengths": [2 * positions]}]}
    (note,) = plan_evaluation(trained, suite=suite).notes
    assert f"longer than the {positions:,} positions of {trained.name}" in note
    assert "a suite of your own" in note
    within = {"name": "short", "parts": [{"kind": "retrieval", "task": "induction", "lengths": [positions]}]}
    assert plan_evaluation(trained, suite=within).notes == ()


@pytest.mark.usefixtures("no_model")
def test_recall_beyond_the_positions_says_which_length_to_pass(trained: Path) -> None:
    positions = json.loads((trained / "config.json").read_text())["max_position_embeddings"]
    recall = {"kind": "retrieval", "task": "recall", "lengths": [positions, 4 * positions], "needles": 3}
    suite = {"name": "facts", "parts": [{**recall, "depths": [0.5], "samples": 2}]}
    (note,) = plan_evaluation(trained, suite=suite).notes
    assert f"longer than the {positions} positions" in note and f"--length {positions}" in note
    shorter = plan_evaluation(trained, suite=suite, length=positions)
    (part,) = shorter.parts
    assert part.units == 2
    assert shorter.notes == ()


@pytest.mark.usefixtures("no_model")
def test_the_command_plans_and_writes_nothing(
    trained: Path, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["evaluate", str(trained), "--text", str(texts), "--suite", "loss", "--length", "32"]
    assert console.run(app, [*words, "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "on this processor" in said and said.endswith(f"Next: surgery {' '.join(words)}\n")
    assert not list(tmp_path.iterdir())
    assert console.run(app, [*words, "--dry-run", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["kind"] == "evaluation-plan" and document["parts"][0]["kind"] == "loss"
