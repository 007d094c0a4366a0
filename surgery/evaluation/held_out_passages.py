"""The texts of a calibration cut into passages: some to observe, some held out for the guard."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from surgery.data import Document
from surgery.errors import UsageError
from surgery.evaluation.passages import Passage, special_prefix

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SHORTEST = 64


@dataclass(frozen=True)
class PassageSplit:
    """Observed and held-out passages, and their number for each text."""

    observed: tuple[Passage, ...]
    held_out: tuple[Passage, ...]
    texts: tuple[dict[str, Any], ...]


def short_names(documents: Sequence[Document]) -> list[Document]:
    """The documents, named by their paths below their common folder, because the record goes into the checkpoint."""
    parts = [PurePath(document.name).parts for document in documents]
    folders = zip(*(path[:-1] for path in parts), strict=False)
    shared = sum(1 for _ in takewhile(lambda names: len(set(names)) == 1, folders))
    return [
        replace(document, name=PurePath(*path[shared:]).as_posix())
        for document, path in zip(documents, parts, strict=True)
    ]


def divide(
    documents: Sequence[Document],
    tokenizer: PreTrainedTokenizerBase,
    lengths: Sequence[int],
    *,
    observe: int,
    hold_out: int,
) -> PassageSplit:
    """Cut passages of each length from as many texts as possible; held-out text is never observed.

    Held-out passages come from the last third of each text, observed passages from the rest. The texts take turns, so
    that even a few passages come from many texts.

    Args:
        documents: the texts.
        tokenizer: of the model.
        lengths: tokens per passage.
        observe: number of observed passages of the shortest length; other lengths get about as many tokens.
        hold_out: number of held-out passages of the shortest length.

    Raises:
        UsageError: no text is long enough to observe one passage and hold out another.
    """
    prefix = special_prefix(tokenizer)
    tokens = _tokenized(documents, tokenizer)
    observed: list[Passage] = []
    held_out: list[Passage] = []
    # In the order of names, a few passages could all come from files of one kind. The order depends only on the content
    # of the texts, so that the same texts in another folder give the same calibration.
    order = sorted(range(len(documents)), key=lambda index: hashlib.sha256(documents[index].text.encode()).digest())
    counts = [{"observed": 0, "held_out": 0} for _ in documents]
    starts = [0] * len(documents)
    borders = [2 * len(ids) // 3 for ids in tokens]
    ends = [len(ids) for ids in tokens]
    for length in sorted(set(lengths)):
        room = length - len(prefix)
        for most, target, key in ((observe, observed, "observed"), (hold_out, held_out, "held_out")):
            wanted = max(1, most * min(lengths) // length)
            taken = 0
            progressed = True
            while taken < wanted and progressed:
                progressed = False
                for index in order:
                    first = starts[index] if key == "observed" else ends[index] - room
                    fits = first + room <= borders[index] if key == "observed" else first >= borders[index]
                    if taken == wanted or not fits:
                        continue
                    target.append(Passage(documents[index].name, prefix + tuple(tokens[index][first : first + room])))
                    starts[index] += room if key == "observed" else 0
                    ends[index] -= room if key == "held_out" else 0
                    counts[index][key] += 1
                    taken, progressed = taken + 1, True
    if not observed or not held_out:
        needed = min(lengths)
        raise UsageError(
            f"the longest of the {len(documents)} texts has {max(map(len, tokens))} tokens; a calibration at {needed} "
            f"tokens needs a text of {3 * needed} tokens, because a third is held out",
            hint="Give longer texts or shorter --lengths.",
        )
    texts = tuple(
        {"name": document.name, "tokens": len(ids), **count}
        for document, ids, count in zip(documents, tokens, counts, strict=True)
    )
    return PassageSplit(tuple(observed), tuple(held_out), texts)


def cut_from_start(
    documents: Sequence[Document], tokenizer: PreTrainedTokenizerBase, lengths: Sequence[int], count: int
) -> tuple[Passage, ...]:
    """Cut ``count`` passages of each length from the start of the texts, which take turns.

    Raises:
        UsageError: no text is long enough for a length.
    """
    prefix = special_prefix(tokenizer)
    tokens = _tokenized(documents, tokenizer)
    starts = [0] * len(documents)
    found: list[Passage] = []
    for length in sorted(set(lengths)):
        room, before = length - len(prefix), len(found)
        turns = 0
        while len(found) - before < count and turns < count:
            turns += 1
            for index, ids in enumerate(tokens):
                if len(found) - before < count and starts[index] + room <= len(ids):
                    part = tuple(ids[starts[index] : starts[index] + room])
                    found.append(Passage(documents[index].name, prefix + part))
                    starts[index] += room
        if len(found) == before:
            raise UsageError(
                f"the longest of the {len(documents)} texts to measure on has {max(map(len, tokens))} tokens, not "
                f"enough for a passage of {length} after the shorter passages",
                hint="Give longer texts or shorter --lengths.",
            )
    return tuple(found)


def _tokenized(documents: Sequence[Document], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    return [
        list(tokenizer(document.text, add_special_tokens=False, verbose=False)["input_ids"]) for document in documents
    ]
