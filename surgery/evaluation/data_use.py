"""The texts and tokens that a part of a suite was measured on."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TextUse:
    """What was taken of one text."""

    name: str
    tokens: int
    sequences: int
    left_out: int


@dataclass(frozen=True)
class DataUse:
    """The measured tokens.

    Attributes:
        length: tokens per sequence asked for.
        longest: tokens of the longest sequence.
        shortest: sequences of fewer tokens are not measured.
        sequences: how many were measured.
        predictions: how many next-token predictions were measured.
        left_out: tokens of the texts read that were not measured (short tails, sequences beyond the limit).
        unread: texts that were not tokenized, since the limit on sequences was reached before.
        prefix: special tokens put before each sequence, as the tokenizer does by default.
        fingerprint: sha256 of the measured token ids; equal fingerprints are equal measurements.
        texts: each text that was read.
    """

    length: int
    longest: int
    shortest: int
    sequences: int
    predictions: int
    left_out: int
    unread: int
    prefix: tuple[int, ...]
    fingerprint: str
    texts: tuple[TextUse, ...]
