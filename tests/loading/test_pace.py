"""Estimates of time: the size of a model is counted from its headers, and words are as round as the estimate."""

from __future__ import annotations

from typing import Any

import pytest

from surgery.checkpoint import open_checkpoint
from surgery.loading import RunOptions, load_model
from surgery.loading.pace import ModelSize, Pace, duration, measure_pace, model_size


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt_neox"])
def test_what_a_token_is_multiplied_by(make_source: Any, family: str) -> None:
    """All numbers of the model, without a matrix of embeddings that is not the head too."""
    folder = make_source(family, vocab_size=101)
    model = load_model(folder, RunOptions())
    head, embeddings = model.get_output_embeddings().weight, model.get_input_embeddings().weight
    every = sum(parameter.numel() for parameter in model.parameters())
    wanted = every if head.data_ptr() == embeddings.data_ptr() else every - embeddings.numel()
    assert model_size(open_checkpoint(folder)).parameters == wanted


def test_the_time_of_a_pass() -> None:
    size, pace = ModelSize(parameters=1000, width=10, stored=4000), Pace(products=1e6, reading=1e6)
    # 4 tokens: 8,000 operations of products, 800 of attention over rows of 10; 4,000 bytes of weights.
    assert size.seconds(pace, 4, 10, passes=3) == pytest.approx(1.15 * 3 * (8800e-6 + 4000e-6))


def test_the_machine_is_measured() -> None:
    pace = measure_pace()
    assert 1e8 < pace.products < 1e15 and 1e8 < pace.reading < 1e14
    assert measure_pace() is pace


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "a few seconds"),
        (8.1, "about 10 s"),
        (42, "about 40 s"),
        (89, "about 90 s"),
        (91, "about 2 min"),
        (3569, "about 59 min"),
        (3601, "about 1 h"),
        (7900, "about 2 h 10 min"),
    ],
)
def test_words(seconds: float, words: str) -> None:
    assert duration(seconds) == words
