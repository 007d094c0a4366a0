"""Headers: valid ones are read as safetensors reads them, and each fault has its own error."""

import json
import os
import struct
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from surgery.checkpoint import DTYPE_BITS, NewTensor, read_header, write_safetensors
from surgery.checkpoint import strict_json as strict
from surgery.errors import CheckpointError

from .builders import entry, f32, raw

FOUR = b"\0" * 4


def test_header_agrees_with_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    write_safetensors(path, {"b": f32(2, 3), "a": f32(4), "s": f32()}, {"format": "pt"})
    tensors, metadata = read_header(path)
    assert metadata == {"format": "pt"}
    with safe_open(path, "np") as theirs:
        assert set(tensors) == set(theirs.keys())
        for name, info in tensors.items():
            assert list(info.shape) == theirs.get_slice(name).get_shape()
            assert info.dtype == theirs.get_slice(name).get_dtype()
            assert info.parameters == theirs.get_tensor(name).size
            assert info.nbytes == theirs.get_tensor(name).nbytes
    assert max(info.end for info in tensors.values()) == path.stat().st_size
    assert tensors["s"].shape == () and tensors["s"].parameters == 1


def test_every_dtype_is_safetensors_own(tmp_path: Path) -> None:
    """Our table is complete and sized as safetensors sizes it: its own reader accepts a file of each."""
    tensors = {dtype: NewTensor(dtype, (8,), b"\0" * bits) for dtype, bits in DTYPE_BITS.items()}
    path = tmp_path / "all.safetensors"
    write_safetensors(path, tensors)
    with safe_open(path, "np") as theirs:
        assert {name: theirs.get_slice(name).get_dtype() for name in theirs.keys()} == {d: d for d in DTYPE_BITS}  # noqa: SIM118
    raw(path, {"a": entry(0, 4, [1], "NONE")}, FOUR)
    with pytest.raises(Exception, match="expected one of") as error, safe_open(path, "np"):
        pass
    assert set(str(error.value).split("expected one of ")[1].split(" at line")[0].replace("`", "").split(", ")) == set(
        DTYPE_BITS
    )


def test_tensors_come_in_the_order_of_their_bytes(tmp_path: Path) -> None:
    path = raw(tmp_path / "x.safetensors", {"z": entry(4, 8), "a": entry(8, 12), "m": entry(0, 4)}, FOUR * 3)
    assert list(read_header(path)[0]) == ["m", "z", "a"]


BROKEN: dict[str, tuple[Any, bytes, str]] = {
    "not json": (b"{nope}", b"", "not valid JSON"),
    "not an object": (b"[1]", b"", "does not start with"),
    "not utf-8": (b'{"\xff": 1}', b"", "not valid UTF-8"),
    "half a surrogate": (b'{"\\ud800": {}}', b"", "not valid UTF-8"),
    "duplicate tensor": (b'{"a": {}, "a": {}}', b"", "'a' twice"),
    "duplicate field": (
        b'{"a": {"dtype": "F32", "dtype": "F16", "shape": [1], "data_offsets": [0, 4]}}',
        FOUR,
        "'dtype' twice",
    ),
    "NaN": (b'{"a": {"dtype": "F32", "shape": [NaN], "data_offsets": [0, 4]}}', FOUR, "NaN"),
    "Infinity": (b'{"a": {"dtype": "F32", "shape": [-Infinity], "data_offsets": [0, 4]}}', FOUR, "Infinity"),
    "overflowing float": (b'{"a": {"dtype": "F32", "shape": [1e999], "data_offsets": [0, 4]}}', FOUR, "1e999"),
    "huge integer": (b'{"a": {"dtype": "F32", "shape": [' + b"9" * 9999 + b'], "data_offsets": [0, 4]}}', FOUR, "9999"),
    "deep nesting": (b'{"a": ' * 200 + b"1" + b"}" * 200, b"", "deeper"),
    "deeper than the parser": (b'{"a": ' + b"[" * 90_000 + b"]" * 90_000 + b"}", b"", "deeper"),
    "overlapping offsets": ({"a": entry(0, 8), "b": entry(4, 12)}, FOUR * 3, "overlaps"),
    "the same bytes twice": ({"a": entry(0, 4), "b": entry(0, 4)}, FOUR, "overlaps"),
    "a gap": ({"a": entry(0, 4), "b": entry(8, 12)}, FOUR * 3, "gap of 4 bytes"),
    "a gap at the start": ({"a": entry(4, 8)}, FOUR * 2, "gap of 4 bytes"),
    "size against shape": ({"a": entry(0, 8, [1])}, FOUR * 2, "need 4"),
    "half a byte": ({"a": entry(0, 1, [1], "F4")}, b"\0", "need 0.5"),
    "unknown dtype": ({"a": entry(0, 4, [1], "F33")}, FOUR, "unknown dtype 'F33'"),
    "dtype not text": ({"a": {**entry(0, 4), "dtype": 32}}, FOUR, "unknown dtype"),
    "dtype a list": ({"a": {**entry(0, 4), "dtype": ["F32"]}}, FOUR, "unknown dtype"),
    "zero-size tensor": ({"a": entry(0, 0, [0])}, b"", "no elements"),
    "negative shape": ({"a": entry(0, 4, [-1, -1])}, FOUR, "none negative"),
    "shape of booleans": ({"a": entry(0, 4, [True])}, FOUR, "whole numbers"),
    "huge shape": ({"a": entry(0, 4, [2**40, 2**40])}, FOUR, "more elements than any file"),
    "many dimensions": ({"a": entry(0, 4, [1] * 65)}, FOUR, "at most 64"),
    "offset beyond the file": ({"a": entry(0, 8)}, FOUR, "ends at byte"),
    "offset near 2**64": ({"a": entry(0, 4), "b": entry(2**64 - 4, 2**64)}, FOUR, "ends at byte"),
    "offsets descending": ({"a": {**entry(0, 4), "data_offsets": [4, 0]}}, FOUR, "ascending"),
    "offsets negative": ({"a": {**entry(0, 4), "data_offsets": [-4, 0]}}, FOUR, "whole numbers"),
    "offsets of floats": ({"a": {**entry(0, 4), "data_offsets": [0.0, 4.0]}}, FOUR, "whole numbers"),
    "three offsets": ({"a": {**entry(0, 4), "data_offsets": [0, 4, 8]}}, FOUR, "two ascending whole numbers"),
    "trailing bytes": ({"a": entry(0, 4)}, FOUR + b"more", "4 bytes after"),
    "bytes and no tensor": ({}, FOUR, "4 bytes after"),
    "entry not an object": ({"a": 1}, b"", "exactly dtype"),
    "missing field": ({"a": {"dtype": "F32", "shape": [1]}}, b"", "exactly dtype"),
    "unknown field": ({"a": {**entry(0, 4), "strides": [1]}}, FOUR, "exactly dtype"),
    "metadata not text": ({"__metadata__": {"n": 1}, "a": entry(0, 4)}, FOUR, "text to text"),
    "metadata a list": ({"__metadata__": [], "a": entry(0, 4)}, FOUR, "text to text"),
    "name drives a terminal": ({"\x1b[2J": entry(0, 4)}, FOUR, r"'\\x1b\[2J' has a name"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_header(case: str, tmp_path: Path) -> None:
    header, data, message = BROKEN[case]
    path = raw(tmp_path / "x.safetensors", header, data)
    with pytest.raises(CheckpointError, match=message) as error:
        read_header(path)
    assert "x.safetensors" in str(error.value)
    assert len(str(error.value)) < 1000
    assert error.value.exit_code == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "too few"),
        (b"\1\0\0", "too few"),
        (struct.pack("<Q", 1000) + b"{}", "1,000 bytes but has only 10"),
        (struct.pack("<Q", 2**63) + b"{}", "the format allows 100,000,000"),
        (struct.pack("<Q", 100_000_001) + b"{}", "the format allows"),
        (struct.pack("<Q", 0) + b"{}", "does not start"),
        (struct.pack("<Q", 1) + b"{}", "not valid JSON"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", "git lfs pull"),
        (b"PK\3\4 a zip of pickles, renamed", "the format allows"),
    ],
)
def test_lying_length_and_truncation(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        read_header(path)


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    write_safetensors(path, {"a": f32(2), "b": f32(1)})
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError):
            read_header(path)


def test_not_a_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="No such file"):
        read_header(tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match="not a regular file"):
        read_header(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no fifos here")
def test_a_fifo_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x")
    with pytest.raises(CheckpointError, match="not a regular file"):
        read_header(tmp_path / "x")
    with pytest.raises(CheckpointError, match="not a regular file"):
        strict.load_json(tmp_path / "x")


@pytest.mark.parametrize("filler", [b"[],", b"{},", b"0,"])
def test_memory_is_bounded_by_the_number_of_values(filler: bytes, tmp_path: Path) -> None:
    """Within the format's size, a header could still unfold to gigabytes of Python objects."""
    path = raw(tmp_path / "x.safetensors", b'{"a":[' + filler * (30_000_000 // len(filler)) + b"0]}")
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match="values"):
            read_header(path)
        assert tracemalloc.get_traced_memory()[1] < 100_000_000
    finally:
        tracemalloc.stop()


def test_a_large_honest_header_is_read_quickly(tmp_path: Path) -> None:
    count = 20_000
    header = {f"model.layers.{i}.weight": entry(4 * i, 4 * i + 4) for i in range(count)}
    path = raw(tmp_path / "x.safetensors", header, FOUR * count)
    begun = time.process_time()  # whatever else the machine does
    assert len(read_header(path)[0]) == count
    assert time.process_time() - begun < 3


def test_sparse_terabyte_costs_nothing(tmp_path: Path) -> None:
    """Only the header is read: a file of a tebibyte of holes opens like any other."""
    size = 2**40
    path = raw(tmp_path / "x.safetensors", {"a": entry(0, size)})
    start = path.stat().st_size
    try:
        os.truncate(path, start + size)
    except OSError:
        pytest.skip("the file system has no files of this size")
    begun = time.perf_counter()
    assert read_header(path)[0]["a"].parameters == size // 4
    assert time.perf_counter() - begun < 1
    assert json.dumps(read_header(path)[0]["a"].end) == str(start + size)
