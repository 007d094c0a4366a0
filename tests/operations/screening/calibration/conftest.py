"""What is calibrated here: a tiny model with a tokenizer, and texts."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.tokenizers import save_tiny_tokenizer, write_texts


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("texts")
    write_texts(folder, documents=4, words=120)
    return folder


@pytest.fixture(scope="module")
def source(make_source: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_tokenizer(make_source("llama"), tmp_path_factory.mktemp("model"))


def with_tokenizer(source: Path, target: Path) -> Path:
    folder = Path(shutil.copytree(source, target / source.name))
    save_tiny_tokenizer(folder)
    return folder
