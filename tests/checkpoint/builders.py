"""Small model folders, whole ones and hostile ones, built from bytes."""

import json
import struct
from pathlib import Path
from typing import Any

from surgery.checkpoint import NewTensor, write_index, write_json, write_safetensors

CONFIG = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 2}
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def f32(*shape: int, fill: int = 0) -> NewTensor:
    count = 1
    for size in shape:
        count *= size
    return NewTensor("F32", shape, bytes([fill]) * (4 * count))


def raw(path: Path, header: Any, data: bytes = b"", *, length: int | None = None) -> Path:
    """A safetensors file with the given header, right or wrong."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def entry(begin: int, end: int, shape: list[int] | None = None, dtype: str = "F32") -> dict[str, Any]:
    shape = [(end - begin) // 4] if shape is None else shape
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def single(folder: Path) -> Path:
    folder.mkdir(parents=True)
    write_json(folder / "config.json", CONFIG)
    write_safetensors(folder / "model.safetensors", {"a": f32(2, 2), "b": f32(3, fill=1)}, {"format": "pt"})
    (folder / "tokenizer.json").write_text("{}")
    return folder


def sharded(folder: Path) -> Path:
    folder.mkdir(parents=True)
    write_json(folder / "config.json", CONFIG)
    write_safetensors(folder / "model-00001-of-00002.safetensors", {"a": f32(2, 2)})
    write_safetensors(folder / "model-00002-of-00002.safetensors", {"b": f32(3), "c": f32(1)})
    write_index(
        folder / "model.safetensors.index.json",
        {
            "a": "model-00001-of-00002.safetensors",
            "b": "model-00002-of-00002.safetensors",
            "c": "model-00002-of-00002.safetensors",
        },
        32,
    )
    return folder


def reindex(folder: Path, **weight_map: Any) -> Path:
    """Replace entries of the index; None removes one."""
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"] = {k: v for k, v in {**index["weight_map"], **weight_map}.items() if v is not None}
    path.write_text(json.dumps(index))
    return folder


def hub_snapshot(cache: Path, hub_id: str = "org/name") -> Path:
    """A repository as the hub client lays it out: blobs, and a snapshot of links to them."""
    repository = cache / f"models--{hub_id.replace('/', '--')}"
    snapshot = repository / "snapshots" / COMMIT
    whole = single(cache / "building")
    (repository / "blobs").mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for number, path in enumerate(sorted(whole.iterdir())):
        path.rename(repository / "blobs" / f"{number:040x}")
        (snapshot / path.name).symlink_to(Path("../../blobs") / f"{number:040x}")
    whole.rmdir()
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    return snapshot


def listing(folder: Path) -> list[tuple[str, int, int]]:
    """Every name below a folder with size and time of change: equal listings mean nothing was written."""
    return sorted(
        (str(path.relative_to(folder)), path.lstat().st_size, path.lstat().st_mtime_ns) for path in folder.rglob("*")
    )
