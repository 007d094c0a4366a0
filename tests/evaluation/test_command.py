"""`surgery evaluate` from the command line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import surgery.commands.evaluate  # noqa: F401
from surgery.commands import console
from surgery.commands.app import app
from surgery.evaluation import EvaluationResult


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def _run(*arguments: object) -> int:
    return console.run(app, ["evaluate", *(str(argument) for argument in arguments)])


def test_a_report_beside_us(trained: Path, operated: Path, texts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        _run(operated, "--against", trained, "--text", texts, "--length", 32, "--suite", "loss", "--device", "cpu") == 0
    )
    printed = capsys.readouterr().out
    assert "No difference" in printed and "report: tiny-ssmax-evaluation/report.html" in printed
    folder = Path("tiny-ssmax-evaluation")
    data = json.loads((folder / "evaluation.json").read_text())
    assert data["kind"] == "evaluation" and EvaluationResult.from_dict(data).verdicts[0].word == "no difference"
    page = (folder / "report.html").read_text()
    assert "--length 32" in page and "0123abcd" in page
    assert (folder / "paired-difference.png").exists() and not (folder / "training.png").exists()
    assert "Evaluation" in (folder / "report.md").read_text()
    alone = ("--text", texts, "--length", 32, "--suite", "loss", "--device", "cpu")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert _run(operated, *alone) == 2  # another report is not replaced without a word
    assert "earlier report" in (said := capsys.readouterr().err) and "--force" in said
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    (folder / "notes.txt").write_text("mine")
    assert _run(operated, *alone, "--force", "--events", "events.jsonl") == 0
    events = [json.loads(line) for line in Path("events.jsonl").read_text().splitlines()]
    assert [event["reused"] for event in events if event["event"] == "part"] == [True]  # finished parts are used
    assert not (folder / "paired-difference.png").exists(), "a picture of the report that was replaced"
    assert (folder / "notes.txt").read_text() == "mine" and (folder / "loss-by-position.png").is_file()


def test_a_folder_of_something_else_is_left_alone(
    trained: Path, copy_of: Any, texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = copy_of(trained, "model")
    given = (model, "--text", texts, "--length", 32, "--suite", "loss", "-q")
    before = sorted(tmp_path.rglob("*"))
    for options in (("-o", "model"), ("-o", "model", "--force"), ("-o", "new", "--results", "model")):
        assert _run(*given, *options) == 2
        assert "'config.json'" in capsys.readouterr().err
    assert console.run(app, ["report", "model", "-o", "model", "--force"]) == 2
    Path("file.json").write_text('{"mine": 1}\n')
    assert _run(*given, "--events", "file.json") == 2
    assert "file.json" in capsys.readouterr().err and Path("file.json").read_text() == '{"mine": 1}\n'
    Path("file.json").unlink()
    assert _run(*given, "-o", "/proc/nowhere/report") == 2
    assert "/proc" in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before


def test_an_interrupted_run_goes_on_without_force(
    trained: Path, texts: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = (trained, "--text", texts, "--length", 32, "--suite", "loss", "-o", "here", "--events", "here/events.jsonl")

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    Path("here").mkdir()
    with monkeypatch.context() as patched:
        patched.setattr("surgery.reporting.draw_report", interrupted)
        assert _run(*given) == 130
    assert sorted(path.name for path in Path("here").iterdir()) == ["events.jsonl", "results"]
    assert _run(*given) == 0
    events = [json.loads(line) for line in Path("here/events.jsonl").read_text().splitlines()]
    assert [event["reused"] for event in events if event["event"] == "part"] == [False, True]


def test_json_is_one_document(trained: Path, texts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        _run(trained, "--text", texts, "--suite", "loss", "--length", 32, "--documents", 2, "-o", "here", "--json") == 0
    )
    captured = capsys.readouterr()
    data = json.loads(captured.out)
    assert data["schema"] == 1 and data["kind"] == "evaluation" and data["sections"][0]["data"]["sequences"] == 2
    assert "here/report.html" in data["files"] and all(Path(name).is_file() for name in data["files"])


def test_training_curves_come_from_the_checkpoint(trained: Path, copy_of, texts: Path) -> None:  # type: ignore[no-untyped-def]
    folder = copy_of(trained)
    (folder / "surgery").mkdir()
    (folder / "surgery" / "history.json").write_text(
        json.dumps({"entries": [{"trained": "scale", "log": "log.jsonl"}]})
    )
    rows = [{"step": step, "loss": 3.0 - step, "learning_rates": {"scale": 0.1}} for step in (1, 2)]
    (folder / "surgery" / "log.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert _run(folder, "--text", texts, "--suite", "loss", "--length", 32, "-o", "here", "-q") == 0
    assert Path("here/training.png").is_file()


def test_wrong_usage(trained: Path, texts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(trained) == 2
    assert "no text is given to measure on" in capsys.readouterr().err
    assert _run(trained, "--text", texts, "--dtype", "int3") == 2
    assert "--dtype int3" in capsys.readouterr().err
    Path("taken").write_text("")
    assert _run(trained, "--text", texts, "-o", "taken") == 2
    assert _run("./nowhere", "--text", texts) == 2
    assert _run(trained, "--text", texts, "--length", 1) == 2
    assert _run(trained, "--text", texts, "--revision", "main") == 2
    assert "has no revision" in capsys.readouterr().err
    assert _run(trained, "--text", texts, "--suite", "quik") == 2
    assert [path.name for path in Path.cwd().iterdir()] == ["taken"]


def test_a_second_run_measures_nothing_and_the_report_is_the_same(
    trained: Path, shuffled: Path, texts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ("--against", trained, "--text", texts, "--length", 32, "--suite", "loss", "-o", "here", "--device", "cpu")
    assert _run(shuffled, *given) == 0
    assert _run(shuffled, *given, "--events", "events.jsonl", "--force") == 0
    events = [json.loads(line) for line in Path("events.jsonl").read_text().splitlines()]
    assert [event["reused"] for event in events if event["event"] == "part"] == [True, True]
    assert not [event for event in events if event["event"] in ("loading", "tokens")]
    capsys.readouterr()
    assert console.run(app, ["report", "here", "-o", "again"]) == 0
    assert "Lost" in capsys.readouterr().out
    own, again = (json.loads((Path(name) / "evaluation.json").read_text()) for name in ("here", "again"))
    assert {**own, "provenance": None} == {**again, "provenance": None}
    assert again["provenance"]["reported"] == "surgery report here"


def test_reports_of_several_runs(
    trained: Path, shuffled: Path, operated: Path, texts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ("--text", texts, "--length", 32, "--suite", "loss", "--device", "cpu", "-q")
    for model, folder in ((shuffled, "one"), (operated, "two"), (trained, "three")):
        assert _run(model, *given, "-o", folder) == 0
    assert console.run(app, ["report", "one", "two", "three", "--against", "tiny-base", "--json"]) == 0
    found = json.loads(Path("report/evaluation.json").read_text())
    assert [use["name"] for use in found["models"]] == ["tiny-shuffled", "tiny-ssmax"]
    assert {finding["word"] for verdict in found["verdicts"] for finding in verdict["findings"]} == {
        "lost",
        "no difference",
    }
    assert console.run(app, ["report", "one", "--against", "nobody"]) == 2
    assert console.run(app, ["report", "nowhere"]) == 2
    Path("empty").mkdir()
    assert console.run(app, ["report", "empty"]) == 2
    assert "no finished measurements" in capsys.readouterr().err


def test_suites_that_ship(capsys: pytest.CaptureFixture[str]) -> None:
    assert _run("--list-suites", "--json") == 0
    found = json.loads(capsys.readouterr().out)["suites"]
    assert [suite["name"] for suite in found] == ["full", "long", "loss", "quick", "recall", "retrieval"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((), "no text is given"),
        (("--suite", "recal"), "did you mean 'recall'"),
        (("--suite", "retrieval", "--text", "."), "--text has no effect"),
        (("--suite", "retrieval", "--length", "8"), "--length has no effect"),
        (("--suite", "recall", "--documents", "8"), "--documents has no effect"),
    ],
)
def test_what_the_suite_makes_of_the_arguments_is_told_before_torch_is_imported(
    arguments: tuple[str, ...], told: str
) -> None:
    code = (
        "import sys; from surgery.commands import console; import surgery.commands.evaluate as e; "
        f"assert console.run(e.app, ['evaluate', 'MODEL', *{arguments}]) == 2; "
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 0 and told in done.stderr, done.stderr


def test_help_stays_light() -> None:
    code = (
        "import sys; from surgery.commands import console; import surgery.commands.evaluate as e; "
        "assert console.run(e.app, ['evaluate', '--help']) == 0; "
        "assert not {'torch', 'transformers', 'matplotlib', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
