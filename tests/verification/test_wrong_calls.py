"""A wrong call is a usage error: it is no result for the checkpoint, and does not change its record."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from surgery.errors import CheckpointError, UsageError
from surgery.loading import RunOptions, load_tokenizer
from surgery.verification import verify
from tests.conversion.conftest import tree


def test_an_unknown_backend(make_pair: Callable[..., Path]) -> None:
    out = make_pair()
    before = tree(out)
    with pytest.raises(UsageError, match="--attn-implementation foo: not known") as caught:
        verify(out, run=RunOptions(attn_implementation="foo"))
    assert "eager, " in str(caught.value.hint) and "sdpa" in str(caught.value.hint)
    assert tree(out) == before


def test_another_family_as_the_source(make_pair: Callable[..., Path], make_source: Any) -> None:
    out = make_pair()
    before = tree(out)
    with pytest.raises(UsageError, match="this source is a qwen2, but a llama was converted"):
        verify(out, against=make_source("qwen2"))
    assert tree(out) == before


def test_a_converted_model_as_the_source(make_pair: Callable[..., Path]) -> None:
    out = make_pair()
    before = tree(out)
    with pytest.raises(UsageError, match=r"has ssmax; the source that was converted had none") as caught:
        verify(out, against=out, files_only=True)
    assert str(caught.value.hint).startswith("Give the source: ") and tree(out) == before


def test_a_folder_without_tokenizer_files(make_source: Any) -> None:
    with pytest.raises(CheckpointError, match="no tokenizer"):
        load_tokenizer(make_source("gpt_neox"))
