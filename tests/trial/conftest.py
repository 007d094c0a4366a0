"""What is tried here: a tiny model with a tokenizer of characters, and texts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.tokenizers import with_tokenizer, write_rivers

LENGTH = 512


@pytest.fixture(scope="session")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixteen texts of about 4,000 characters; each character is a token."""
    folder = tmp_path_factory.mktemp("texts")
    write_rivers(folder)
    return folder


@pytest.fixture(scope="session")
def source(make_source: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = make_source("llama", max_position_embeddings=2 * LENGTH)
    return with_tokenizer(made, tmp_path_factory.mktemp("model") / "tiny")
