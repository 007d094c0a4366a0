"""The results folder: nothing runs twice, an interrupted run continues, an incomplete line is dropped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from surgery.errors import CheckpointError, UsageError
from surgery.evaluation import evaluate
from surgery.evaluation.loss.measure import LossMeasure
from surgery.evaluation.store import PartFile, read_measurement
from surgery.loading import RunOptions

CPU = RunOptions(device="cpu")
IDENTITY = {"name": "org/some model", "suite": "quick", "model": "f" * 64, "kind": "loss", "data": "x"}


def test_names_and_keys(tmp_path: Path) -> None:
    one = PartFile(tmp_path, IDENTITY)
    assert one.path.parent == tmp_path / "some-model-ffffffffffff" / "quick"
    assert PartFile(tmp_path, {**IDENTITY, "name": "copy", "suite": "other"}).key == one.key
    assert PartFile(tmp_path, {**IDENTITY, "data": "y"}).key != one.key


def test_a_torn_line_is_measured_again(tmp_path: Path) -> None:
    file = PartFile(tmp_path, IDENTITY)
    assert file.start() == {}
    file.add("0", {"losses": [1.5]})
    file.add("1", {"losses": [2.5]})
    file.leave()
    partial = next(tmp_path.rglob("*.partial.jsonl"))
    partial.write_bytes(partial.read_bytes()[:-5])
    assert file.start() == {"0": {"losses": [1.5]}}
    with pytest.raises(CheckpointError):
        PartFile(tmp_path, IDENTITY).start()
    file.add("1", {"losses": [2.5]})
    document = file.finish({"units": [1, 2]})
    file.leave()
    assert file.finished() == document and read_measurement(file.path)["units"] == [1, 2]
    assert [path.name for path in file.path.parent.iterdir()] == [file.path.name]


def test_what_is_no_measurement(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    for content, message in (("{", "cannot be read"), ("{}", "not a measurement"), ("[]", "not a measurement")):
        path.write_text(content)
        with pytest.raises(UsageError, match=message):
            read_measurement(path)
    path.write_text(json.dumps({"kind": "measurement", "schema": 99}))
    with pytest.raises(UsageError, match="has schema 99"):
        read_measurement(path)


def test_an_interrupted_run_goes_on(trained: Path, texts: Path, tmp_path: Path, monkeypatch: Any) -> None:
    given = {"suite": "loss", "length": 32, "text": [texts], "run": CPU}
    whole = evaluate(trained, **given)
    own, measured = LossMeasure.run, []

    def counted(self: Any, subject: Any, units: Any, on_tokens: Any) -> Any:
        measured.extend(unit.key for unit in units)
        if len(measured) == 4:
            raise KeyboardInterrupt
        return own(self, subject, units, on_tokens)

    monkeypatch.setattr(LossMeasure, "run", counted)
    with pytest.raises(KeyboardInterrupt):
        evaluate(trained, **given, results=tmp_path)
    seen: list[dict[str, Any]] = []
    assert evaluate(trained, **given, results=tmp_path, on_event=seen.append) == whole
    last = [event for event in seen if event["event"] == "tokens"][-1]
    assert last["done"] == last["total"]  # what was there already counts as done
    assert len(measured) == len(set(measured)) + 1  # the one that was interrupted
    before = len(measured)
    assert evaluate(trained, **given, results=tmp_path) == whole and len(measured) == before
    assert evaluate(trained, **{**given, "length": 16}, results=tmp_path) != whole and len(measured) > before


def test_changed_weights_are_another_model(trained: Path, copy_of: Any, texts: Path, tmp_path: Path) -> None:
    folder = copy_of(trained)
    given = {"suite": "loss", "length": 32, "text": [texts], "run": CPU, "results": tmp_path / "results"}
    one = evaluate(folder, **given)
    weights = folder / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-2] ^= 0x40  # a bit of the last weight
    weights.write_bytes(data)
    other = evaluate(folder, **given)
    assert other.models[0].fingerprint != one.models[0].fingerprint
    (folder / "README.md").write_text("another card")
    assert evaluate(folder, **given) == other
