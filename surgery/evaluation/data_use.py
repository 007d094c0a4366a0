"""The texts and tokens that a part of a suite was measured on."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TextUse:
    """The part of one text that was measured."""

    name: str
    tokens: int
    sequences: int
    left_out: int


@dataclass(frozen=True)
class DataUse:
    """The measured tokens.

    Attributes:
        length: tokens per sequence, as asked for.
        longest: tokens of the longest sequence.
        shortest: sequences of fewer tokens are not measured.
        sequences: number of measured sequences.
        predictions: number of measured next-token predictions.
        left_out: tokens of these texts that were not measured (short tails, sequences beyond the limit).
        unread: texts that were not read because the limit on sequences was reached.
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
