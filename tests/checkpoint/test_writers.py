"""Written safetensors files are what safetensors reads, and the same input gives the same bytes."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from surgery.checkpoint import (
    NewTensor,
    load_json,
    read_header,
    same_tensor_bytes,
    tensor_bytes,
    write_index,
    write_json,
    write_safetensors,
)
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
