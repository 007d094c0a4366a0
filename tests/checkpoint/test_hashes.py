"""Hashes and comparisons see every byte, in memory that does not grow with the file."""

import hashlib
import json
import threading
import tracemalloc
from pathlib import Path

import pytest

from surgery.checkpoint import (
    BackgroundHasher,
    TensorInfo,
    place_file,
    same_tensor_bytes,
    sha256_file,
    sha256_json,
    tensor_bytes,
    write_safetensors,
)
from surgery.checkpoint import hashes as hashes_module
from surgery.errors import CheckpointError

from .builders import f32


def test_sha256(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hashes_module, "_CHUNK", 1000)
    content = bytes(range(256)) * 20
    (tmp_path / "x").write_bytes(content)
    seen: list[int] = []
    assert sha256_file(tmp_path / "x", seen.append) == hashlib.sha256(content).hexdigest()
    assert sum(seen) == len(content) and len(seen) == 6
    with pytest.raises(CheckpointError, match="gone cannot be read"):
        sha256_file(tmp_path / "gone")


def test_sha256_of_json_is_canonical() -> None:
    assert sha256_json({"b": [1, 2.5], "a": "é"}) == sha256_json({"a": "é", "b": [1, 2.5]})
    assert sha256_json({"a": 1}) == hashlib.sha256(b'{"a":1}').hexdigest()
    assert sha256_json({"a": 1}) != sha256_json({"a": "1"})
    with pytest.raises(ValueError, match="JSON"):
        sha256_json(float("inf"))


def test_comparison_sees_every_byte_in_bounded_memory(tmp_path: Path) -> None:
    size = 3 * hashes_module._CHUNK + 5
    content = bytearray(size)
    (tmp_path / "a").write_bytes(content)
    a = TensorInfo("t", "U8", (size,), "a", 0, size)
    (tmp_path / "b").write_bytes(b"pad" + content)
    b = TensorInfo("t", "U8", (size,), "b", 3, size + 3)
    tracemalloc.start()
    assert same_tensor_bytes(tmp_path / "a", a, tmp_path / "b", b)
    assert tracemalloc.get_traced_memory()[1] < 2.5 * hashes_module._CHUNK
    tracemalloc.stop()
    for position in (0, hashes_module._CHUNK, size - 1):
        with (tmp_path / "b").open("r+b") as file:
            file.seek(3 + position)
            file.write(b"\1")
        assert not same_tensor_bytes(tmp_path / "a", a, tmp_path / "b", b)
        (tmp_path / "b").write_bytes(b"pad" + content)
    assert not same_tensor_bytes(tmp_path / "a", a, tmp_path / "b", TensorInfo("t", "U8", (5,), "b", 3, 8))


def test_a_file_that_became_shorter(tmp_path: Path) -> None:
    info = write_safetensors(tmp_path / "x", {"a": f32(1000)})["a"]
    whole = (tmp_path / "x").read_bytes()
    (tmp_path / "y").write_bytes(whole)
    (tmp_path / "x").write_bytes(whole[:500])
    with pytest.raises(CheckpointError, match="cannot be read"):
        tensor_bytes(tmp_path / "x", info)
    with pytest.raises(CheckpointError, match="x is shorter than its header"):
        same_tensor_bytes(tmp_path / "x", info, tmp_path / "y", info)


def test_tensor_bytes_beyond_the_first_page(tmp_path: Path) -> None:
    tensors = {f"t{i:03}": f32(1000, fill=i) for i in range(50)}
    for name, info in write_safetensors(tmp_path / "x", tensors).items():
        view = tensor_bytes(tmp_path / "x", info)
        assert bytes(view) == tensors[name].data and view.readonly
    assert json.dumps(info.shape) == "[1000]"


def test_files_are_hashed_while_they_are_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hashes_module, "_SMALL_CHUNK", 1000)
    contents = {tmp_path / f"{number}": bytes([number]) * size for number, size in enumerate((999, 1000, 0, 2501))}
    seen: list[int] = []
    with BackgroundHasher() as following:
        for path, content in contents.items():
            path.write_bytes(content)
            place_file(path, path.with_suffix(".copy"), "copy", following.follow(path, seen.append))
        found = following.results()
    expected = {path: hashlib.sha256(content).hexdigest() for path, content in contents.items() if content}
    assert found == expected and sum(seen) == 4500


def test_a_file_that_shrinks_or_goes_while_it_is_hashed_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"12345")
    with BackgroundHasher() as following, pytest.raises(CheckpointError, match="x has become shorter"):
        following.follow(path, lambda count: None)(6)
        following.results()
    with BackgroundHasher() as following, pytest.raises(CheckpointError, match="No such file"):
        following.follow(tmp_path / "y", lambda count: None)(6)
        following.results()


def test_hashing_ends_with_whatever_ended_the_copying(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"1")
    with pytest.raises(KeyboardInterrupt), BackgroundHasher() as following:
        following.follow(tmp_path / "x", lambda count: None)(1)
        raise KeyboardInterrupt
    assert not any(thread.name == "hashing" for thread in threading.enumerate())
