"""Sources of every shape: sharded or not, with an index or without, with files of all kinds around the weights."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from surgery.checkpoint import open_checkpoint, write_index

CARD = "---\nlicense: apache-2.0\nlanguage:\n- en\n- de\ntags:\n- evil\n---\n\n# A model\n\nIts own words.\n"
FILES: dict[str, bytes] = {
    "LICENSE": b"Apache-2.0\n",
    "tokenizer.json": b'{"added":  "spaces kept"}',
    "tokenizer_config.json": b'{"tokenizer_class": "PreTrainedTokenizerFast"}\n',
    "chat_template.jinja": b"{% for m in messages %}{{ m.content }}\r\n{% endfor %}",
    "generation_config.json": b"{}",
    "original/params.json": b'{"dim": 32}',
    "assets/deep/er/picture.png": bytes(range(256)),
    "empty.txt": b"",
}
KINDS = ("single", "indexed", "sharded", "adorned", "bf16")
MakeKind = Callable[[str], Path]


def tree(folder: Path) -> dict[str, bytes | None]:
    """Everything below a folder: content of files, None for folders. Equal trees are what ``diff -r`` calls equal."""
    return {
        path.relative_to(folder).as_posix(): None if path.is_dir() else path.read_bytes()
        for path in sorted(folder.rglob("*"))
    }


def adorn(folder: Path) -> Path:
    """Add a card, a tokenizer, a licence, and files in folders."""
    for name, content in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    (folder / "README.md").write_text(CARD)
    return folder


@pytest.fixture(scope="session")
def make_kind(make_source: Any, tmp_path_factory: pytest.TempPathFactory) -> MakeKind:
    """``make_kind("adorned")``: a source that no test writes to."""
    made: dict[str, Path] = {}

    def copy(source: Path) -> Path:
        return Path(shutil.copytree(source, tmp_path_factory.mktemp("kind") / source.name))

    def make(kind: str) -> Path:
        if kind not in made:
            if kind == "single":
                made[kind] = make_source("llama")
            elif kind == "sharded":
                made[kind] = make_source("llama", sharded=True)
            elif kind == "adorned":
                made[kind] = adorn(copy(make("sharded")))
            elif kind == "indexed":
                made[kind] = copy(make("single"))
                checkpoint = open_checkpoint(made[kind])
                names = dict.fromkeys(checkpoint.tensors, "model.safetensors")
                write_index(made[kind] / "model.safetensors.index.json", names, 7, metadata={"own": "words"})
            else:
                import torch

                made[kind] = make_source("llama", sharded=True, dtype=torch.bfloat16)
        return made[kind]

    return make


@pytest.fixture(params=KINDS)
def source(request: pytest.FixtureRequest, make_kind: MakeKind) -> Path:
    """Each kind of source in turn."""
    return make_kind(request.param)
