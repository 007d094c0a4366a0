"""What is written is what safetensors reads; hashes and comparisons see every byte."""

import hashlib
import json
import threading
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from surgery.checkpoint import (
    BackgroundHasher,
    NewTensor,
    TensorInfo,
    load_json,
    place_file,
    read_header,
    same_tensor_bytes,
    sha256_file,
    sha256_json,
    tensor_bytes,
    write_index,
    write_json,
    write_safetensors,
)
from surgery.checkpoint import hashes as hashes_module
from surgery.errors import CheckpointError

from .builders import f32

NUMPY = {"F32": np.float32, "F16": np.float16, "I64": np.int64, "U8": np.uint8, "BOOL": np.bool_}


@st.composite
def arrays(draw: st.DrawFn) -> dict[str, np.ndarray]:
    result = {}
    for name in draw(st.lists(st.text("abc.1é", min_size=1, max_size=6), min_size=1, max_size=5, unique=True)):
        kind = NUMPY[draw(st.sampled_from(sorted(NUMPY)))]
        shape = tuple(draw(st.lists(st.integers(1, 3), max_size=3)))
        result[name] = np.arange(int(np.prod(shape)), dtype=np.float32).reshape(shape).astype(kind)
    return result


def new(array: np.ndarray) -> NewTensor:
    dtype = next(dtype for dtype, kind in NUMPY.items() if array.dtype == kind)
    return NewTensor(dtype, array.shape, array.tobytes())


@given(arrays())
@settings(max_examples=60, deadline=None)
def test_round_trip_through_safetensors(tmp_path_factory: pytest.TempPathFactory, given: dict[str, np.ndarray]) -> None:
    folder = tmp_path_factory.mktemp("w")
    info = write_safetensors(folder / "ours", {name: new(array) for name, array in given.items()}, {"format": "pt"})
    loaded = load_file(folder / "ours")
    assert set(loaded) == set(given) == set(info)
    for name, array in given.items():
        assert loaded[name].dtype == array.dtype and loaded[name].shape == array.shape
        assert loaded[name].tobytes() == array.tobytes() == bytes(tensor_bytes(folder / "ours", info[name]))
    with safe_open(folder / "ours", "np") as theirs:
        assert theirs.metadata() == {"format": "pt"}
    # Aligned: the data starts at a multiple of eight, and each tensor at a multiple of its element.
    for tensor in info.values():
        assert tensor.begin % (tensor.nbytes // tensor.parameters) == 0
    # And theirs, read by us.
    save_file(given, folder / "theirs")
    for name, tensor in read_header(folder / "theirs")[0].items():
        assert bytes(tensor_bytes(folder / "theirs", tensor)) == given[name].tobytes()
        assert same_tensor_bytes(folder / "theirs", tensor, folder / "ours", info[name])


def test_the_same_bytes_whatever_the_order(tmp_path: Path) -> None:
    one = {"b": f32(2), "a": f32(1, fill=1), "h": NewTensor("F16", (1,), b"12")}
    write_safetensors(tmp_path / "1", one, {"y": "1", "x": "2"})
    write_safetensors(tmp_path / "2", dict(reversed(one.items())), {"x": "2", "y": "1"})
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()
    assert list(read_header(tmp_path / "1")[0]) == ["a", "b", "h"]


@pytest.mark.parametrize(
    ("dtype", "shape", "data"),
    [
        ("F32", (2,), b"\0" * 7),
        ("F32", (0,), b""),
        ("F4", (1,), b"\0"),
        ("F4", (3,), b"\0"),
        ("X", (1,), b"\0"),
        ("U8", (-1,), b""),
    ],
)
def test_tensors_that_disagree_with_themselves(dtype: str, shape: tuple[int, ...], data: bytes) -> None:
    with pytest.raises(CheckpointError):
        NewTensor(dtype, shape, data)


def test_files_that_are_not_written(tmp_path: Path) -> None:
    (tmp_path / "there").write_text("x")
    tensors: Any
    for name, tensors in [
        ("there", {"a": f32(1)}),
        ("new", {}),
        ("new", {"__metadata__": f32(1)}),
        ("new", {"\n": f32(1)}),
    ]:
        with pytest.raises(CheckpointError):
            write_safetensors(tmp_path / name, tensors)
    with pytest.raises(CheckpointError, match="cannot be written"):
        write_json(tmp_path / "there", {})
    with pytest.raises(CheckpointError, match="leaves its folder"):
        write_index(tmp_path / "new", {"a": "../x.safetensors"}, 4)
    assert [path.name for path in tmp_path.iterdir()] == ["there"] and (tmp_path / "there").read_text() == "x"


def test_index(tmp_path: Path) -> None:
    path = tmp_path / "i.json"
    write_index(
        path, {"b": "2.safetensors", "a": "1.safetensors"}, 12, metadata={"total_parameters": 3, "total_size": 0}
    )
    assert load_json(path) == {
        "metadata": {"total_parameters": 3, "total_size": 12},
        "weight_map": {"a": "1.safetensors", "b": "2.safetensors"},
    }
    assert list(load_json(path)["weight_map"]) == ["a", "b"]


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
