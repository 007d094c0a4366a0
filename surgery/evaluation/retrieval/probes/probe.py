"""A probe: a prompt with its right continuation."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Probe:
    """A prompt and its right continuation, as tokens; ``text`` is the answer, None for probes of random tokens."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    text: str | None


@dataclass(frozen=True)
class ProbeSet:
    """Several probes whose prompts begin with the same tokens.

    Attributes:
        shared: how many tokens the prompts have in common.
        probes: one for each fact.
        depths: of each fact.
        text: positions of the shared tokens that belong to neither a fact nor a question, nor begin every sequence.
    """

    shared: int
    probes: tuple[Probe, ...]
    depths: tuple[float, ...]
    text: tuple[int, ...]

    @property
    def tokens(self) -> int:
        """Tokens that go through a model: the shared ones once, then each question with its answer."""
        return self.shared + sum(len(probe.prompt) + len(probe.answer) - self.shared for probe in self.probes)
