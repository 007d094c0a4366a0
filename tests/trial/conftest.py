"""What is tried here: a tiny model with a tokenizer of characters, and texts."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.tokenizers import save_tiny_tokenizer

LENGTH = 512


@pytest.fixture(scope="session")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixteen texts of some 4,000 characters, each of which is a token."""
    folder = tmp_path_factory.mktemp("texts")
    for number in range(16):
        lines = (f"Paragraph {line} speaks of river {number} and of what is beside it." for line in range(70))
        (folder / f"{number}.txt").write_text("\n\n".join(lines), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def source(make_source: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = make_source("llama", max_position_embeddings=2 * LENGTH)
    folder = Path(shutil.copytree(made, tmp_path_factory.mktemp("model") / "tiny"))
    save_tiny_tokenizer(folder)
    return folder
