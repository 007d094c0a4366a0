"""A probe: a prompt with its right continuation."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Probe:
    """A prompt and its right continuation, as tokens; ``text`` is the answer, None for probes of random tokens."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    text: str | None
