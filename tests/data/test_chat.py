"""Conversations: the loss counts the answers, with every template."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import ByT5Tokenizer

from surgery.data import IGNORED, collate, make_rows
from surgery.data.chat import encode_chat
from surgery.errors import UsageError
from tests.recovery.conftest import write_tokenizer

MESSAGES = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": "why, exactly?"},
    {"role": "assistant", "content": "because"},
    {"role": "user", "content": "and?"},
    {"role": "assistant", "content": "no more"},
]
CHATML = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
MARKED = (
    "{% for message in messages %}<|{{ message['role'] }}|>{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] }}<|end|>\n{% endgeneration %}"
    "{% else %}{{ message['content'] }}<|end|>\n{% endif %}{% endfor %}"
)
LAST_ONLY = (
    "{% for message in messages %}{% if loop.last or message['role'] != 'assistant' %}{{ message['content'] }};"
    "{% endif %}{% endfor %}"
)


@pytest.fixture
def tokenizer(tmp_path: Path) -> Any:
    from transformers import AutoTokenizer

    write_tokenizer(tmp_path)
    return AutoTokenizer.from_pretrained(tmp_path)


def _answers(tokenizer: Any, template: str) -> tuple[str, list[str]]:
    tokenizer.chat_template = template
    ids, marks = encode_chat(tokenizer, MESSAGES, "chat#1")
    spans: list[list[int]] = []
    for place, mark in enumerate(marks):
        if mark and (place == 0 or not marks[place - 1]):
            spans.append([])
        if mark:
            spans[-1].append(ids[place])
    return tokenizer.decode(ids), [tokenizer.decode(span) for span in spans]


def test_answers_are_marked_alike_with_and_without_marks_in_the_template(tokenizer: Any) -> None:
    whole, answers = _answers(tokenizer, CHATML)
    assert answers == ["because<|end|>\n", "no more<|end|>\n"]
    assert whole.startswith("<|system|>be brief<|end|>") and whole.count("<|end|>") == 5
    assert _answers(tokenizer, MARKED) == (whole, answers)


def test_what_the_template_cannot_do(tokenizer: Any) -> None:
    with pytest.raises(UsageError, match="this tokenizer has none"):
        encode_chat(tokenizer, MESSAGES, "chat#1")
    with pytest.raises(UsageError, match="chat#1: the chat template changes earlier messages"):
        _answers(tokenizer, LAST_ONLY)
    with pytest.raises(UsageError, match="chat#1: the chat template rejects these messages: roles alternate"):
        _answers(tokenizer, "{{ raise_exception('roles alternate') }}")


@pytest.mark.parametrize("template", [CHATML, MARKED])
def test_a_tokenizer_that_does_not_know_its_characters_is_refused(template: str) -> None:
    tokenizer = ByT5Tokenizer()
    tokenizer.chat_template = template
    with pytest.raises(UsageError, match="this tokenizer does not give them"):
        encode_chat(tokenizer, MESSAGES)


def test_labels_are_the_answers_packed_or_cut(tokenizer: Any) -> None:
    tokenizer.chat_template = CHATML
    ids, marks = encode_chat(tokenizer, MESSAGES, "chat#1")
    rows = make_rows([ids, [5, 6, 7]], len(ids) + 3, packing=True, predicted=[marks, None])
    assert len(rows) == 1 and rows[0].targets == sum(marks) + 2
    labels = collate(rows)["labels"][0].tolist()
    counted = [label for label in labels if label != IGNORED]
    assert tokenizer.decode(counted[:-2]) == "because<|end|>\nno more<|end|>\n" and counted[-2:] == [6, 7]
    # Pieces without an answer have nothing to predict.
    pieces = make_rows([ids], 16, packing=False, predicted=[marks])
    assert sum(row.targets for row in pieces) in range(sum(marks) - len(pieces), sum(marks) + 1)
    assert len(pieces) < -(-len(ids) // 16)
