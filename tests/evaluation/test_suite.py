"""Suites: read strictly, with every fault at once; the shipped suites are valid."""

from __future__ import annotations

from pathlib import Path

import pytest

from surgery.errors import UsageError
from surgery.evaluation import SuiteError, read_suite
from surgery.schemas.shipped import shipped_files


@pytest.mark.parametrize("name", [file.name for file in shipped_files("suites")])
def test_suites_that_ship_are_valid(name: str) -> None:
    suite = read_suite(name)
    assert suite.name == name and suite.parts
    assert shipped_files("suites")[0].summary.endswith(".")


def test_every_fault_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(
        """\
name: own
marginn: 3
parts:
  - kind: loss
    lenght: 3
    buckets: [8, 4]
  - kind: retrieval
    task: passkey
    lengths: []
    needles: 3
  - kind: sliding
    length: 64
    stride: 64
  - kind: walking
"""
    )
    with pytest.raises(SuiteError) as caught:
        read_suite(path)
    found = {problem.path: (problem.line, problem.message) for problem in caught.value.problems}
    assert found["marginn"] == (2, "unknown key; did you mean `margin`?")
    assert found["parts.0.lenght"] == (5, "unknown key; did you mean `length`?")
    assert found["parts.1.lengths"][0] == 9
    assert found["parts.2"][0] == 11 and "stride 64 must be below length 64" in found["parts.2"][1]
    assert found["parts.3"][0] == 14 and "kind" in found["parts.3"][1]


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"kind": "loss", "buckets": [8, 4]}, "positive and rising"),
        ({"kind": "retrieval", "task": "passkey", "lengths": [64], "needles": 2}, "needles has no effect"),
        ({"kind": "attention", "length": "64"}, "valid integer"),
        ({"kind": "speed", "repeats": 1}, "greater than or equal to 3"),
    ],
)
def test_what_a_part_cannot_say(part: dict[str, object], message: str) -> None:
    with pytest.raises(SuiteError, match=message):
        read_suite({"name": "own", "parts": [part]})


def test_names_that_do_not_ship() -> None:
    with pytest.raises(UsageError, match="did you mean 'quick'"):
        read_suite("quik")
    with pytest.raises(UsageError, match="no suite file"):
        read_suite("own.yaml")


def test_length_and_documents_in_place_of_the_suites() -> None:
    suite = read_suite("full").changed(length=128, documents=3)
    loss, sliding = suite.parts[0], suite.parts[1]
    attention = next(part for part in suite.parts if part.kind == "attention")
    assert (loss.length, loss.documents) == (128, 3) and (sliding.length, sliding.stride) == (128, 64)
    assert (attention.length, attention.documents) == (128, 2)
    with pytest.raises(UsageError, match="--length 1"):
        read_suite("loss").changed(length=1)
