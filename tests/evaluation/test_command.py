"""`surgery evaluate` from the command line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

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
    assert _run(operated, "--against", trained, "--text", texts, "--length", 32, "--device", "cpu") == 0
    printed = capsys.readouterr().out
    assert "No difference" in printed and "report: tiny-ssmax-evaluation/report.html" in printed
    folder = Path("tiny-ssmax-evaluation")
    data = json.loads((folder / "evaluation.json").read_text())
    assert data["kind"] == "evaluation" and EvaluationResult.from_dict(data).verdict is not None
    page = (folder / "report.html").read_text()
    assert "--length 32" in page and "0123abcd" in page
    assert (folder / "paired-difference.png").exists() and not (folder / "training.png").exists()
    assert _run(operated, "--text", texts, "--length", 32, "--device", "cpu") == 0  # again, into the same folder


def test_json_is_one_document(trained: Path, texts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(trained, "--text", texts, "--length", 32, "--documents", 2, "-o", "here", "--json") == 0
    captured = capsys.readouterr()
    data = json.loads(captured.out)
    assert data["schema"] == 1 and data["kind"] == "evaluation" and data["data"]["sequences"] == 2
    assert "here/report.html" in data["files"] and all(Path(name).is_file() for name in data["files"])


def test_training_curves_come_from_the_checkpoint(trained: Path, copy_of, texts: Path) -> None:  # type: ignore[no-untyped-def]
    folder = copy_of(trained)
    (folder / "surgery").mkdir()
    (folder / "surgery" / "history.json").write_text(
        json.dumps({"entries": [{"trained": "scale", "log": "log.jsonl"}]})
    )
    rows = [{"step": step, "loss": 3.0 - step, "learning_rates": {"scale": 0.1}} for step in (1, 2)]
    (folder / "surgery" / "log.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert _run(folder, "--text", texts, "--length", 32, "-o", "here", "-q") == 0
    assert Path("here/training.png").is_file()


def test_wrong_usage(trained: Path, texts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(trained) == 2
    assert "no text was given to measure on" in capsys.readouterr().err
    assert _run(trained, "--text", texts, "--dtype", "int3") == 2
    assert "--dtype int3" in capsys.readouterr().err
    Path("taken").write_text("")
    assert _run(trained, "--text", texts, "-o", "taken") == 2
    assert _run("./nowhere", "--text", texts) == 2
    assert _run(trained, "--text", texts, "--length", 1) == 2
    assert [path.name for path in Path.cwd().iterdir()] == ["taken"]


def test_help_stays_light() -> None:
    code = (
        "import sys; from surgery.commands import console; import surgery.commands.evaluate as e; "
        "assert console.run(e.app, ['evaluate', '--help']) == 0; "
        "assert not {'torch', 'transformers', 'matplotlib', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
