"""Token ids of a text, with the characters that each token stands for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from surgery.errors import UsageError

# Token ids of a text, and for each the first of its characters and the one after its last.
Offsets = Callable[[str], tuple[list[int], list[tuple[int, int]]]]


def offsets_of(tokenizer: Any, *, special_tokens: bool = False) -> Offsets:
    """A function that gives the token ids of a text and their characters, by this tokenizer.

    Raises:
        UsageError: the tokenizer does not know the characters; when the function is called.
    """

    def offsets(text: str) -> tuple[list[int], list[tuple[int, int]]]:
        check_offsets(tokenizer)
        found = tokenizer(text, add_special_tokens=special_tokens, return_offsets_mapping=True, verbose=False)
        return list(found["input_ids"]), list(found["offset_mapping"])

    return offsets


def check_offsets(tokenizer: Any) -> None:
    """Refuse a tokenizer that does not know which characters a token stands for.

    Raises:
        UsageError: it does not.
    """
    if not tokenizer.is_fast:
        raise UsageError(
            "answers are located by the characters of each token, and this tokenizer does not give them",
            hint="Use a model with a fast tokenizer (tokenizer.json).",
        )
