"""Texts cut into sequences of tokens, and a record of the tokens that are measured and left out."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from surgery.data import Document
from surgery.errors import UsageError
from surgery.evaluation.data_use import DataUse, TextUse

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SHORTEST = 64


@dataclass(frozen=True)
class Passage:
    """One sequence to measure: the special tokens that the tokenizer puts first, then tokens of one document.

    The first ``skip`` predictions are context only.
    """

    document: str
    tokens: tuple[int, ...]
    skip: int = 0


def shortest_for(length: int) -> int:
    """The fewest tokens that a sequence may have: 64, or half of a shorter ``length``."""
    return max(2, min(SHORTEST, length // 2))


def cut_passages(
    documents: Sequence[Document],
    tokenizer: PreTrainedTokenizerBase,
    *,
    length: int,
    limit: int | None = None,
) -> tuple[list[Passage], DataUse]:
    """Tokenize each document and cut it into sequences of ``length`` tokens; documents are never joined.

    A document's tail is a sequence too unless it is shorter than :func:`shortest_for`. With a ``limit``, the first
    sequence of every document is taken before the second of any; among these, sequences of full length come first, in
    the order of the documents' names. Reading stops when ``limit`` documents have given a sequence of full length.

    Raises:
        UsageError: no document is long enough.
    """
    prefix = special_prefix(tokenizer)
    shortest, room = shortest_for(length), length - len(prefix)
    if room < 1:
        raise UsageError(f"--length {length} leaves no room after the tokenizer's {len(prefix)} special tokens")
    counts: list[int] = []
    pieces: list[list[tuple[int, ...]]] = []
    for document in documents:
        ids = _tokenize(tokenizer, document.text)
        counts.append(len(ids))
        cuts = (prefix + tuple(ids[start : start + room]) for start in range(0, len(ids), room))
        pieces.append([cut for cut in cuts if len(cut) >= shortest])
        if limit is not None and sum(1 for own in pieces if own and len(own[0]) == length) >= limit:
            break

    taken = _round_robin(pieces, limit, length)
    if not taken:
        raise _too_short(documents, counts, shortest)
    passages = [Passage(documents[index].name, pieces[index][number]) for index, number in taken]
    uses = []
    for index, count in enumerate(counts):
        measured = [pieces[index][number] for at, number in taken if at == index]
        used = sum(len(piece) - len(prefix) for piece in measured)
        uses.append(TextUse(documents[index].name, count, len(measured), count - used))
    return passages, DataUse(
        length=length,
        longest=max(len(passage.tokens) for passage in passages),
        shortest=shortest,
        sequences=len(passages),
        predictions=sum(len(passage.tokens) - 1 for passage in passages),
        left_out=sum(use.left_out for use in uses),
        unread=len(documents) - len(counts),
        prefix=prefix,
        fingerprint=fingerprint(passages),
        texts=tuple(uses),
    )


def cut_windows(
    documents: Sequence[Document],
    tokenizer: PreTrainedTokenizerBase,
    *,
    length: int,
    stride: int,
    tokens: int,
    limit: int | None = None,
) -> tuple[list[Passage], DataUse]:
    """Windows of ``length`` tokens that move over each document by ``stride``; each predicts its new tokens.

    Args:
        documents: the texts; a text that does not fill a window gives one shorter window.
        tokenizer: cuts the texts into tokens.
        length: tokens of a window, special tokens included.
        stride: tokens by which it moves on.
        tokens: most tokens of one text.
        limit: largest number of texts.

    Raises:
        UsageError: no document is long enough.
    """
    prefix = special_prefix(tokenizer)
    shortest, room = shortest_for(length), length - len(prefix)
    if stride >= room:
        raise UsageError(
            f"a window of {length} tokens, {len(prefix)} of them special, cannot move by {stride} without leaving "
            "tokens out",
            hint="Set a smaller stride.",
        )
    passages: list[Passage] = []
    uses: list[TextUse] = []
    for document in documents:
        ids = _tokenize(tokenizer, document.text)
        used = ids[:tokens] if len(prefix) + len(ids) >= shortest else []
        before, own = 0, 0
        while before < len(used):
            end = min(room, len(used)) if before == 0 else min(before + stride, len(used))
            start = max(0, end - room)
            skip = max(0, len(prefix) + before - start - 1)
            passages.append(Passage(document.name, prefix + tuple(used[start:end]), skip))
            before, own = end, own + 1
        uses.append(TextUse(document.name, len(ids), own, len(ids) - len(used)))
        if limit is not None and sum(1 for use in uses if use.sequences) >= limit:
            break
    if not passages:
        raise _too_short(documents, [use.tokens for use in uses], shortest)
    return passages, DataUse(
        length=length,
        longest=max(len(passage.tokens) for passage in passages),
        shortest=shortest,
        sequences=len(passages),
        predictions=sum(len(passage.tokens) - 1 - passage.skip for passage in passages),
        left_out=sum(use.left_out for use in uses),
        unread=len(documents) - len(uses),
        prefix=prefix,
        fingerprint=fingerprint(passages),
        texts=tuple(uses),
    )


def special_prefix(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """The special tokens that the tokenizer puts before a text by default (often a beginning-of-sequence token)."""
    with_special = list(tokenizer("a", add_special_tokens=True)["input_ids"])
    plain = list(tokenizer("a", add_special_tokens=False)["input_ids"])
    for start in range(len(with_special) - len(plain) + 1):
        if plain and with_special[start : start + len(plain)] == plain:
            return tuple(with_special[:start])
    return ()


def fingerprint(passages: Iterable[Passage]) -> str:
    """sha256 of the token ids, sequence by sequence, and of the number of predictions that are context only."""
    digest = hashlib.sha256()
    for passage in passages:
        digest.update(len(passage.tokens).to_bytes(8, "little"))
        digest.update(passage.skip.to_bytes(8, "little"))
        digest.update(np.asarray(passage.tokens, dtype="<i8").tobytes())
    return digest.hexdigest()


def _too_short(documents: Sequence[Document], counts: Sequence[int], shortest: int) -> UsageError:
    return UsageError(
        f"the longest of the {len(documents)} texts has {max(counts)} tokens; "
        f"a sequence needs at least {shortest} with the special tokens",
        hint="Pass longer texts. Files are not joined, because a loss across their border has no meaning.",
    )


def _tokenize(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    # verbose=False: no warning about the length, because the texts are cut afterwards.
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def _round_robin(pieces: list[list[tuple[int, ...]]], limit: int | None, length: int) -> list[tuple[int, int]]:
    """(document, sequence) pairs in reading order; a limit takes more documents first, then longer sequences."""
    order = [(number, len(cut) < length, index) for index, own in enumerate(pieces) for number, cut in enumerate(own)]
    chosen = sorted(order)[:limit]
    return sorted((index, number) for number, _, index in chosen)
