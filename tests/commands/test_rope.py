"""``--to rope`` on the command line: alone, with another operation, and refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from surgery.conversion import convert
from tests.anatomy.builders import bare_source
from tests.conversion.conftest import tree


def test_flags_of_two_operations_give_the_bytes_of_the_library(surgery: Any, tmp_path: Path) -> None:
    source = bare_source(tmp_path / "model", head_dim=64)
    words = "--to rope --to ssmax --type ntk --factor 4 --form paper --layers all --layers ssmax=0-1"
    ran = surgery("convert", source, "-o", tmp_path / "out", *words.split())
    assert ran.code == 0 and "ntk, positions 8192 to 32768 (x 4)" in " ".join(ran.out.split())
    assert ran.out.count("starts as") == 1 and "a changed model, by rope and ssmax" in ran.out
    operations = [
        {"name": "rope", "type": "ntk", "factor": 4, "layers": "all"},
        {"name": "ssmax", "form": "paper", "layers": "0-1"},
    ]
    assert tree(convert(source, operations, output=tmp_path / "again").output) == tree(tmp_path / "out")


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ("--factor 1", 2, "greater than 1"),
        ("--type yran", 2, "did you mean 'yarn'"),
        ("--theta 5", 2, "belongs to type 'theta'"),
        ("--form paper", 2, "--form is no option of rope"),
        ("--layers 0-1", 3, "all layers share one RoPE"),
        ("--replace", 2, "has no RoPE scaling"),
    ],
)
def test_refusals(surgery: Any, tmp_path: Path, words: str, code: int, said: str) -> None:
    ran = surgery("convert", bare_source(tmp_path / "model"), "--to", "rope", *words.split())
    assert ran.code == code and said in ran.err
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_inspect_says_what_applies_and_why_not(surgery: Any, tmp_path: Path) -> None:
    scaled = bare_source(tmp_path / "scaled", rope_scaling={"rope_type": "linear", "factor": 4.0})
    shown = surgery("inspect", scaled).out
    assert "already scaled" in shown and "linear x 4, theta 10000" in shown and "--to rope" not in shown
    source = bare_source(tmp_path / "model")
    assert f"surgery convert --to rope {source}" in surgery("inspect", source).out
    surgery("convert", source, "-o", tmp_path / "out", "--to", "rope")
    found = json.loads(surgery("inspect", tmp_path / "out", "--json").out)
    assert (found["trained_length"], found["positions"]) == (8192, 16384)
    assert {layer["operations"]["ssmax"] for layer in found["layers"]} == {None}
    assert {layer["operations"]["rope"] for layer in found["layers"]} == {"already changed"}
