"""File names from untrusted files: hostile names are rejected, accepted names stay in their folder."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from surgery.checkpoint import safe_relative
from surgery.errors import CheckpointError

HOSTILE = [
    "",
    "/etc/passwd",
    "..",
    "../x",
    "a/../../x",
    "a/..",
    ".",
    "./a",
    "a//b",
    "a/",
    "C:/x",
    "c:x",
    "x.safetensors:stream",
    "\\\\server\\x",
    "..\\x",
    "a\\..\\..\\x",
    "a\0b",
    "a\nb",
    "a\x1b[2Jb",
    "CON",
    "con.safetensors",
    "sub/NUL.txt",
    "LPT1",
    "com9.bin",
    "COM¹",
    "a.",
    "a ",
    "dir./x",
    "\ud800",
    "\u202efdp.exe",
    "x" * 256,
    "é" * 128,
    "a/" * 3000 + "x",
    None,
    3,
    ["a"],
]


@pytest.mark.parametrize("name", HOSTILE, ids=lambda name: ascii(name)[:30])
def test_hostile_name(name: Any) -> None:
    with pytest.raises(CheckpointError) as error:
        safe_relative(name)
    assert str(error.value).isascii() and len(str(error.value)) < 500


@pytest.mark.parametrize(
    "name", ["model.safetensors", "sub/x.json", ".gitattributes", "console.txt", "模型.json", "a b"]
)
def test_plain_name(name: str) -> None:
    assert safe_relative(name) == name


@given(st.text(max_size=30) | st.text("./\\ab:C\0", max_size=12))
@settings(max_examples=200, deadline=None)
def test_an_accepted_name_stays_in_its_folder(name: str) -> None:
    try:
        accepted = safe_relative(name)
    except CheckpointError:
        return
    folder = Path("/folder")
    # resolve() follows the rules of the system, so it is asked rather than the string.
    assert (folder / accepted).resolve(strict=False) != folder
    assert (folder / accepted).resolve(strict=False).is_relative_to(folder)
