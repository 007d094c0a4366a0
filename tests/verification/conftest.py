"""Converted checkpoints with a tokenizer, whose verification passes; tests spoil copies of them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from surgery.conversion import convert
from tests.recovery.conftest import write_tokenizer

VOCABULARY = 260  # of the byte tokenizer, rounded up
Pair = tuple[Path, Path]


@pytest.fixture(scope="session")
def source(make_source: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sharded tiny llama with a tokenizer and a card."""
    made = make_source("llama", sharded=True, vocab_size=VOCABULARY)
    folder = Path(shutil.copytree(made, tmp_path_factory.mktemp("verified") / "tiny"))
    write_tokenizer(folder)
    (folder / "README.md").write_text("---\nlicense: mit\n---\nwords\n")
    return folder


@pytest.fixture
def make_pair(source: Path, tmp_path: Path) -> Callable[..., Path]:
    """``make_pair(form="logn")``: the source converted, in a folder of the test's own."""

    def make(**options: Any) -> Path:
        return convert(source, output=tmp_path / "out", **options).output

    return make
