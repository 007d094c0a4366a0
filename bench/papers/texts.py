"""Rows of text for the reproductions: a tokenizer trained on the texts, and windows of tokens at random places."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import surgery
from bench.papers.runs import Scale
from surgery.data import Row, read_documents

HELD_OUT = 0.1


class Texts:
    """The tokens of the documents of some texts; every tenth document is held out."""

    def __init__(self, patterns: Sequence[str], state: Path, vocabulary: int) -> None:
        """Train the tokenizer in a folder of ``state``, unless it is there, and read the documents."""
        from tokenizers import Tokenizer

        folder = state / f"tokenizer-{vocabulary}"
        if not folder.is_dir():
            sizes: dict[str, Any] = {"layers": 1, "heads": 1, "width": 2}
            surgery.new("softmax", folder, vocab_size=vocabulary, train_tokenizer=list(patterns), **sizes)
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.vocabulary = tokenizer.get_vocab_size()
        documents = [tokenizer.encode(document.text).ids for document in read_documents(patterns)]
        every = round(1 / HELD_OUT)
        self.held_out = documents[every - 1 :: every]
        self._training = [ids for number, ids in enumerate(documents) if number % every != every - 1]

    def rows(self, scale: Scale, steps: int, seed: int) -> list[Row]:
        """One window for each sequence of the training; windows may cross from one document into the next."""
        tokens = list(chain.from_iterable(self._training))
        draw = random.Random(f"training/{seed}")
        starts = (draw.randrange(len(tokens) - scale.length) for _ in range(steps * scale.sequences))
        return [Row((tuple(tokens[start : start + scale.length]),)) for start in starts]

    def passages(self, length: int, count: int) -> list[list[int]]:
        """The beginnings of held-out documents that are long enough, at most ``count``.

        Raises:
            SystemExit: no held-out document is long enough.
        """
        found = [ids[:length] for ids in self.held_out if len(ids) >= length][:count]
        if not found:
            raise SystemExit(f"no held-out document has {length} tokens; give longer texts")
        return found
