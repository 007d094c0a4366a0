"""Documents are cut as promised, and every token is accounted for."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from surgery.data import Document
from surgery.errors import UsageError
from surgery.evaluation.passages import cut_passages, shortest_for, special_prefix
from tests.evaluation.conftest import WORDS, save_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> object:
    folder = tmp_path_factory.mktemp("plain")
    save_tokenizer(folder)
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def with_bos(tmp_path_factory: pytest.TempPathFactory) -> object:
    folder = tmp_path_factory.mktemp("bos")
    save_tokenizer(folder, bos=True)
    return AutoTokenizer.from_pretrained(folder)


def _document(name: str, words: int) -> Document:
    return Document(name, " ".join(f"w{place % WORDS}" for place in range(words)))


def test_cut_into_lengths_and_tails(tokenizer: object) -> None:
    documents = [_document("a", 40), _document("b", 37), _document("c", 7)]
    passages, use = cut_passages(documents, tokenizer, length=16)
    assert [(passage.document, len(passage.tokens)) for passage in passages] == [
        ("a", 16),
        ("a", 16),
        ("a", 8),
        ("b", 16),
        ("b", 16),
    ]
    assert [(text.name, text.tokens, text.sequences, text.left_out) for text in use.texts] == [
        ("a", 40, 3, 0),
        ("b", 37, 2, 5),
        ("c", 7, 0, 7),
    ]
    assert use.left_out == 12 and use.sequences == 5 and use.predictions == 15 * 4 + 7 and use.longest == 16


def test_a_limit_takes_breadth_first(tokenizer: object) -> None:
    documents = [_document(name, 64) for name in "abc"] + [_document("d", 3)]
    passages, _ = cut_passages(documents, tokenizer, length=16, limit=4)
    assert [passage.document for passage in passages] == ["a", "a", "b", "c"]
    passages, use = cut_passages(documents, tokenizer, length=16, limit=2)
    assert [passage.document for passage in passages] == ["a", "b"] and use.unread == 2


def test_a_limit_prefers_full_length(tokenizer: object) -> None:
    documents = [_document("a", 12), _document("b", 20), _document("c", 9), _document("d", 16), _document("e", 16)]
    passages, use = cut_passages(documents, tokenizer, length=16, limit=1)
    assert [(passage.document, len(passage.tokens)) for passage in passages] == [("b", 16)] and use.unread == 3
    passages, use = cut_passages(documents, tokenizer, length=16, limit=2)
    assert [passage.document for passage in passages] == ["b", "d"] and use.unread == 1
    passages, _ = cut_passages(documents[:3], tokenizer, length=16, limit=2)  # others where there are no more
    assert [(passage.document, len(passage.tokens)) for passage in passages] == [("a", 12), ("b", 16)]


def test_special_tokens_open_every_sequence(tokenizer: object, with_bos: object) -> None:
    assert special_prefix(tokenizer) == () and special_prefix(with_bos) == (1,)
    passages, use = cut_passages([_document("a", 40)], with_bos, length=16)
    assert {passage.tokens[0] for passage in passages} == {1}
    assert [len(passage.tokens) for passage in passages] == [16, 16, 11]
    assert use.prefix == (1,) and use.left_out == 0 and use.predictions == 40


def test_too_short_texts_are_an_error_with_numbers(tokenizer: object) -> None:
    with pytest.raises(UsageError, match="longest of the 2 texts has 5 tokens; a sequence needs at least 64"):
        cut_passages([_document("a", 5), _document("b", 3)], tokenizer, length=4096)


@settings(max_examples=40, deadline=None)
@given(
    words=st.lists(st.integers(1, 90), min_size=1, max_size=5),
    length=st.integers(2, 40),
    limit=st.none() | st.integers(1, 6),
)
def test_every_token_is_measured_or_left_out(tokenizer: object, words: list[int], length: int, limit: int) -> None:
    documents = [_document(str(place), count) for place, count in enumerate(words)]
    if max(words) < shortest_for(length):
        return
    passages, use = cut_passages(documents, tokenizer, length=length, limit=limit)
    assert sum(len(passage.tokens) for passage in passages) + use.left_out == sum(text.tokens for text in use.texts)
    assert use.unread + len(use.texts) == len(documents)
    assert all(use.shortest <= len(passage.tokens) <= length for passage in passages)
    assert limit is None or len(passages) <= limit


def test_the_fingerprint_knows_where_sequences_end(tokenizer: object) -> None:
    one = cut_passages([_document("a", 32)], tokenizer, length=32)[1].fingerprint
    two = cut_passages([_document("a", 32)], tokenizer, length=16)[1].fingerprint
    assert one != two and Path(one).name == one
