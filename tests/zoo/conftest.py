"""Shelves of small models, some of them broken, and manifests over them. Nothing here needs torch."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from surgery.zoo.zoo import Zoo, open_zoo
from tests.anatomy.builders import bare_source

FAMILIES = ("llama", "qwen2", "qwen3", "gemma2")


def _edit(name: str, change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        path = folder / name
        path.write_bytes(change(path.read_bytes()))

    return spoil


def _config(**changes: Any) -> Callable[[Path], None]:
    def change(content: bytes) -> bytes:
        config = {**json.loads(content), **changes}
        return json.dumps({key: value for key, value in config.items() if value is not ...}).encode()

    return _edit("config.json", change)


def _header(change: Callable[[dict[str, Any]], dict[str, Any]]) -> Callable[[Path], None]:
    def rewrite(content: bytes) -> bytes:
        length = struct.unpack("<Q", content[:8])[0]
        text = json.dumps(change(json.loads(content[8 : 8 + length]))).encode()
        return struct.pack("<Q", len(text)) + text + content[8 + length :]

    return _edit("model.safetensors", rewrite)


def _overlap(header: dict[str, Any]) -> dict[str, Any]:
    first = next(entry for name, entry in header.items() if name != "__metadata__")
    return {name: first if name != "__metadata__" else entry for name, entry in header.items()}


# One model of each kind of broken, and a part of what its row says.
BROKEN: Mapping[str, tuple[Callable[[Path], None], str]] = {
    "cut": (_edit("model.safetensors", lambda content: content[:-5]), "model.safetensors"),
    "lying-length": (_edit("model.safetensors", lambda content: struct.pack("<Q", 2**62) + content[8:]), "header"),
    "overlapping": (_header(_overlap), "overlap"),
    "bad-dtype": (
        _header(lambda header: {n: {**e, "dtype": "F31"} for n, e in header.items() if n != "__metadata__"}),
        "F31",
    ),
    "no-json": (_edit("config.json", lambda content: content[:-3]), "not valid JSON"),
    "nan": (_edit("config.json", lambda content: content[:-2] + b', "x": NaN}'), "NaN"),
    "twice": (_edit("config.json", lambda content: b'{"model_type": "llama",' + content[1:]), "twice"),
    "no-config": (lambda folder: (folder / "config.json").unlink(), "no config.json"),
    "no-weights": (lambda folder: (folder / "model.safetensors").unlink(), "no weights"),
    "unknown-family": (_config(model_type="martian"), "martian"),
    "no-layers": (_config(num_hidden_layers=...), "num_hidden_layers"),
    "more-layers": (_config(num_hidden_layers=40), "and its number of layers"),
    "escape": (lambda folder: (folder / "x.txt").symlink_to("/etc/hostname"), "leaves the model folder"),
    "pipe": (lambda folder: os.mkfifo(folder / "x.txt"), "special file"),
    "dangling": (lambda folder: (folder / "x.txt").symlink_to("nowhere"), "does not exist"),
    "index": (
        lambda folder: (
            (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../b.safetensors"}}') and None
        ),
        "leaves its folder",
    ),
}


def broken_source(folder: Path, kind: str) -> Path:
    """A model that is broken in one way."""
    bare_source(folder)
    BROKEN[kind][0](folder)
    return folder


def write_manifest(folder: Path, **content: Any) -> Path:
    """A manifest as JSON, which is YAML too; by default over everything in ``models/``."""
    default = {"models": [{"path": "models/*"}], "operations": [{"name": "ssmax"}], "output": "out"}
    path = folder / "zoo.yaml"
    path.write_text(json.dumps({**default, **content}))
    return path


MakeZoo = Callable[..., Zoo]


@pytest.fixture
def make_zoo(tmp_path: Path) -> MakeZoo:
    """``make_zoo(["llama", "qwen2"], broken=["cut"], verify="none")``: a shelf and an opened manifest over it."""

    def make(families: Any = FAMILIES, broken: Any = (), **content: Any) -> Zoo:
        for family in families:
            if not (tmp_path / "models" / family).exists():
                bare_source(tmp_path / "models" / family, family)
        for kind in broken:
            broken_source(tmp_path / "models" / f"broken-{kind}", kind)
        return open_zoo(write_manifest(tmp_path, **content))

    return make


def states(summary: Mapping[str, Any]) -> dict[str, str]:
    """State of each item by name."""
    return {item["item"]: item["state"] for item in summary["items"]}
