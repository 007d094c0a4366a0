"""What a probe is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Probe:
    """A prompt and its right continuation, as tokens; ``text`` of the answer where the probe is made of text."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    text: str | None
