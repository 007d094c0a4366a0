"""A zoo that chooses start values on texts: outputs equal single commands, and what depends on the texts is redone."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from surgery.conversion import convert
from surgery.errors import UsageError
from surgery.loading import RunOptions
from surgery.operations.ssmax.calibration import SSMaxCalibrationSettings, calibrate, gradients
from surgery.verification import verify
from surgery.zoo import worker
from surgery.zoo.item_process import request_for
from surgery.zoo.manifest import ManifestError, read_manifest
from surgery.zoo.outputs import OUT_OF_DATE
from surgery.zoo.plan import TORCH_BYTES
from surgery.zoo.run import run_zoo
from surgery.zoo.zoo import Zoo, open_zoo, zoo_status
from tests.conversion.conftest import tree
from tests.tokenizers import with_tokenizer, write_paragraphs
from tests.zoo.conftest import states, write_manifest

SETTINGS: dict[str, Any] = {"lengths": [256, 512], "haystacks": 4, "max_loss_increase": 0.1}
CALIBRATE: dict[str, Any] = {"text": ["texts"], "settings": SETTINGS, "dtype": "float32"}


@pytest.fixture
def shelf(make_source: Any, tmp_path: Path) -> Path:
    """A folder with a tiny model that has a tokenizer, and with texts."""
    (tmp_path / "models").mkdir()
    with_tokenizer(make_source("llama", max_position_embeddings=1024), tmp_path / "models" / "tiny")
    write_paragraphs(tmp_path / "texts")
    return tmp_path


def zoo_of(shelf: Path, **content: Any) -> Zoo:
    return open_zoo(write_manifest(shelf, **{"calibrate": CALIBRATE, **content}))


def test_outputs_are_those_of_single_calibrations_and_new_texts_make_them_out_of_date(shelf: Path) -> None:
    model = {"path": "models/tiny"}
    zoo = zoo_of(shelf, models=[model, {**model, "name": "plain", "calibrate": "none"}])
    told: list[Any] = []
    assert set(states(run_zoo(zoo, on_event=told.append)).values()) == {"done"}
    found = calibrate(
        shelf / "models" / "tiny",
        [shelf / "texts"],
        settings=SSMaxCalibrationSettings(**SETTINGS),
        run=RunOptions(dtype="float32"),
    )
    single = convert(shelf / "models" / "tiny", "ssmax", calibration=found, output=shelf / "single" / "tiny-ssmax")
    verify(single.output, against=shelf / "models" / "tiny", files_only=True)
    assert tree(zoo.output / "tiny-ssmax") == tree(single.output)
    assert (zoo.output / "tiny-ssmax" / "surgery" / "calibration.json").is_file()
    assert not (zoo.output / "plain-ssmax" / "surgery" / "calibration.json").exists()
    stages = [event["stage"] for event in told if event["event"] == "stage" and event["item"] == "tiny-ssmax"]
    assert stages[:2] == ["calibrating", "converting"]
    counted = [(event["done"], event["total"]) for event in told if event["event"] == "tokens"]
    assert counted and counted[-1][0] == counted[-1][1] > 0
    assert not (zoo.output / ".surgery-zoo" / "calibrating" / "tiny-ssmax").exists()

    assert [row.state for row in zoo_of(shelf, models=[model]).plan().rows] == ["done"]
    (shelf / "texts" / "mills.txt").write_text((shelf / "texts" / "mills.txt").read_text() + "\n\nOne more.\n")
    (row,) = zoo_of(shelf, models=[model]).plan().rows
    assert row.state == "refused" and row.reason == OUT_OF_DATE
    assert states(zoo_status(shelf / "zoo.yaml")) == {"tiny-ssmax": "changed"}


def test_what_an_interrupted_calibration_has_finished_is_used_again(
    shelf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (row,) = zoo_of(shelf).plan().rows
    request = request_for(row)
    measured = gradients.row_gradients
    calls: list[int] = []

    def interrupted(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return measured(*arguments)

    monkeypatch.setattr(gradients, "row_gradients", interrupted)
    with pytest.raises(KeyboardInterrupt):
        worker.convert_item(request, lambda kind, **content: None)
    kept = shelf / "out" / ".surgery-zoo" / "calibrating" / "tiny-ssmax"
    assert len(list(kept.iterdir())) == 2 and not row.item.output.exists()
    calls[:] = [1, 1, 1]
    worker.convert_item(request, lambda kind, **content: None)
    assert len(calls) == 3 + SETTINGS["haystacks"] - 2 and not kept.exists()


def test_texts_that_are_too_short_cost_one_row(shelf: Path) -> None:
    (shelf / "short.txt").write_text("A few words.")
    short = {**CALIBRATE, "text": ["short.txt"]}
    models = [{"path": "models/tiny"}, {"path": "models/tiny", "name": "plain", "calibrate": "none"}]
    summary = run_zoo(zoo_of(shelf, models=models, calibrate=short))
    assert states(summary) == {"tiny-ssmax": "failed", "plain-ssmax": "done"}
    assert "tokens" in summary["items"][0]["reason"]


def test_screening_needs_no_other_option_beside_a_calibration(shelf: Path) -> None:
    settings = {"lengths": [128], "observe": 2, "hold_out": 1, "max_loss_increase": 1.0}
    calibrate = {"text": ["texts/*.txt"], "settings": settings, "dtype": "float32"}
    operations = [{"name": "screening"}]
    summary = run_zoo(zoo_of(shelf, operations=operations, calibrate=calibrate))
    assert states(summary) == {"tiny-screening": "done"}, summary["items"]
    assert (shelf / "out" / "tiny-screening" / "surgery" / "calibration.json").is_file()


def test_a_plan_counts_the_memory_and_loads_no_torch(shelf: Path) -> None:
    (row,) = zoo_of(shelf).plan().rows
    assert row.state == "ready" and row.memory > TORCH_BYTES
    code = (
        "import sys; from surgery.zoo.zoo import open_zoo; from pathlib import Path; "
        f"open_zoo(Path({str(shelf / 'zoo.yaml')!r})).plan(); print('torch' in sys.modules)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60).stdout
    assert said.strip() == "False"


def test_a_length_beyond_the_trained_one_refuses_the_row(shelf: Path) -> None:
    (row,) = zoo_of(shelf, calibrate={**CALIBRATE, "settings": {"lengths": [2048]}}).plan().rows
    assert row.state == "refused" and "trained at 1024 tokens" in row.reason


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"calibrate": {"text": ["a"], "settings": {"lenghts": [1]}}}, "lenghts: unknown key; did you mean `lengths`"),
        ({"calibrate": {"text": ["a"], "settings": {"lengths": [3]}}}, "lengths: a passage needs at least 16 tokens"),
        ({"calibrate": {"text": ["a"], "device": "gpu"}}, "calibrate.device: gpu: no device has this name"),
        ({"calibrate": {"text": []}}, "calibrate.text"),
        ({"calibrate": {"text": ["a"]}, "operations": [{"name": "rope", "type": "yarn", "factor": 2}]}, "no effect"),
    ],
)
def test_a_wrong_calibration_is_a_fault_of_the_manifest(change: dict[str, Any], problem: str) -> None:
    manifest = {"models": [{"path": "m"}], "operations": [{"name": "ssmax"}], "output": "out", **change}
    with pytest.raises(ManifestError, match=re.escape(problem)):
        read_manifest(manifest)


def test_models_that_share_a_calibration_share_its_fault_which_is_told_once_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "zoo.yaml").write_text("""\
models: [{path: a}, {path: b}]
operations: [{name: ssmax}]
output: out
calibrate:
  text: [texts]
  device: gpu
  settings:
    lenghts: [1]
""")
    with pytest.raises(ManifestError) as caught:
        read_manifest(tmp_path / "zoo.yaml")
    found = [(problem.line, problem.path) for problem in caught.value.problems]
    assert found == [(6, "calibrate.device"), (8, "calibrate.settings.lenghts")]


def test_missing_texts_are_told_before_anything_runs(shelf: Path) -> None:
    with pytest.raises(UsageError, match=r"calibrate.text: no text file matches"):
        zoo_of(shelf, calibrate={"text": ["nowhere/*.txt"]})
