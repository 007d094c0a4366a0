"""Cutting, packing and the held-out split."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from surgery.data import IGNORED, Document, Row, collate, exclude_documents, hold_out, make_rows, split_documents
from surgery.errors import UsageError

_token_lists = st.lists(st.lists(st.integers(0, 99), max_size=40), max_size=12)


@settings(deadline=None, max_examples=60)
@given(_token_lists, st.integers(2, 16), st.booleans())
def test_rows_hold_every_piece_once(documents: list[list[int]], length: int, packing: bool) -> None:
    rows = make_rows(documents, length, packing=packing)
    pieces = [tuple(document[at : at + length]) for document in documents for at in range(0, len(document), length)]
    assert Counter(piece for row in rows for piece in row.documents) == Counter(
        piece for piece in pieces if len(piece) > 1
    )
    assert all(0 < row.tokens <= length for row in rows)
    assert packing or all(len(row.documents) == 1 for row in rows)


def test_packing_fills_rows() -> None:
    documents = [[1] * 3, [2] * 5, [3] * 8, [4] * 4, [5] * 4]
    rows = make_rows(documents, 8, packing=True)
    assert sorted(row.tokens for row in rows) == [8, 8, 8]
    assert len(make_rows(documents, 8, packing=False)) == 5


def test_collate() -> None:
    batch = collate([Row(((7, 8, 9), (5, 6))), Row(((1, 2),))], pad=3)
    assert batch["input_ids"].tolist() == [[7, 8, 9, 5, 6], [1, 2, 3, 3, 3]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1], [0, 1, 0, 1, 2]]
    assert batch["held"].tolist() == [[False, True, True, False, True], [False, True, False, False, False]]
    marked = collate([Row(((7, 8, 9), (5, 6)), (0, 1), ((False, False, True), None))])
    assert marked["held"].tolist() == [[False, True, False, False, True]]
    assert batch["labels"].tolist() == [[IGNORED, 8, 9, IGNORED, 6], [IGNORED, 2, IGNORED, IGNORED, IGNORED]]


def _documents(*texts: str) -> list[Document]:
    return [Document(f"{number}.txt", text) for number, text in enumerate(texts)]


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.sampled_from(["a b", "a  b\n", "c", "d d d d d d", "e" * 30, " e" * 3]), min_size=2, max_size=9),
    st.floats(0.05, 0.9),
    st.integers(0, 5),
)
def test_no_text_on_both_sides(texts: list[str], share: float, seed: int) -> None:
    documents = _documents(*texts)
    if len({" ".join(text.split()) for text in texts}) < 2:
        with pytest.raises(UsageError, match="two different documents"):
            hold_out(documents, share, seed)
        return
    train, held = hold_out(documents, share, seed)
    assert train and held
    assert sorted(document.name for document in train + held) == sorted(document.name for document in documents)
    assert not {" ".join(d.text.split()) for d in train} & {" ".join(d.text.split()) for d in held}


def test_split_depends_on_seed_and_text_alone() -> None:
    documents = _documents(*(f"text number {number} " * 9 for number in range(20)))
    names = [tuple(document.name for document in hold_out(documents, 0.3, seed)[1]) for seed in (0, 0, 1)]
    assert names[0] == names[1] != names[2]
    assert len(names[0]) == 6
    renamed = [Document("other" + document.name, document.text) for document in reversed(documents)]
    assert {d.text for d in hold_out(renamed, 0.3, 0)[1]} == {d.text for d in hold_out(documents, 0.3, 0)[1]}


@pytest.mark.parametrize(
    ("sizes", "share", "held"),
    [
        ((500, 100, 100, 100, 200), 0.2, {200}),  # the long one alone would be half of the text
        ((900, 100), 0.3, {100}),
        ((900, 100), 0.02, {100}),  # never nothing
        ((900, 100), 0.99, {100, 900}),  # never all
    ],
)
def test_documents_that_come_nearest_to_the_share(sizes: tuple[int, ...], share: float, held: set[int]) -> None:
    documents = [Document(f"{n}", f"{n}" * size) for n, size in enumerate(sizes)]
    for seed in range(8):
        found = sum(len(document.text) for document in hold_out(documents, share, seed)[1])
        assert found in held


def test_without_and_separator() -> None:
    documents = split_documents(_documents("one<|>two<|> <|>three"), "<|>")
    assert [(document.name, document.text) for document in documents] == [
        ("0.txt#0", "one"),
        ("0.txt#1", "two"),
        ("0.txt#3", "three"),
    ]
    assert [document.text for document in exclude_documents(documents, _documents(" two\n"))] == ["one", "three"]
    assert split_documents(_documents("one<|>two"), None)[0].text == "one<|>two"
