"""The guard of a calibration: the loss of held-out passages, and the answers to held-out haystacks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from surgery.evaluation.estimates import Estimate
from surgery.evaluation.loss.token_losses import token_losses
from surgery.evaluation.passages import Passage
from surgery.evaluation.retrieval.haystacks import haystack_logits
from surgery.evaluation.retrieval.probes import ProbeSet
from surgery.evaluation.statistics import Resampling
from surgery.operations.ssmax.calibration.gradients import ssmax_modules
from surgery.operations.ssmax.calibration.results import HeldOutPassage, Recall

OnTokens = Callable[[int, str], None]
_WITHOUT, _WITH = "held-out text without SSMax", "held-out text with SSMax"
# Tokens per pass over a haystack.
_CHUNK = 4096


class HeldOutGuard:
    """Measures held-out passages and haystacks; the source, with SSMax off, is measured once.

    Args:
        model: with SSMax on its layers.
        passages: to measure the loss.
        haystacks: to measure the answers.
        on_tokens: called with finished tokens and what was measured.
    """

    def __init__(
        self, model: Any, passages: Sequence[Passage], haystacks: Sequence[ProbeSet], on_tokens: OnTokens
    ) -> None:
        self._model, self._passages, self._haystacks, self._on_tokens = model, passages, haystacks, on_tokens
        self._source: tuple[list[float], list[tuple[float, float]]] | None = None

    @property
    def answer_tokens(self) -> int:
        """Tokens of the haystacks in one measurement."""
        return sum(one.tokens for one in self._haystacks)

    @property
    def tokens(self) -> int:
        """Tokens of one measurement."""
        return sum(len(passage.tokens) for passage in self._passages) + sum(one.tokens for one in self._haystacks)

    def measure_loss(self) -> tuple[HeldOutPassage, ...]:
        """The passages with the model's present numbers, and with SSMax off."""
        if self._source is None:
            with self._switched(off=True):
                self._source = self._losses(_WITHOUT), self._all_answers(_WITHOUT)
        return tuple(
            HeldOutPassage(passage.document, len(passage.tokens), before, after)
            for passage, before, after in zip(self._passages, self._source[0], self._losses(_WITH), strict=True)
        )

    def measure_answers(self) -> Recall:
        """The answers with the model's present numbers, and with SSMax off; after :meth:`measure_loss`."""
        assert self._source is not None
        answers, own_answers = self._source[1], self._all_answers(_WITH)
        change = self._change([own[0] - source[0] for source, own in zip(answers, own_answers, strict=True)])
        return Recall(
            len(self._haystacks), len(answers), *_means(answers), *_means(own_answers), change.low, change.high
        )

    def _change(self, changes: Sequence[float]) -> Estimate:
        """The mean change of an answer's log-probability."""
        owners = [number for number, haystack in enumerate(self._haystacks) for _ in haystack.probes]
        return Resampling(owners).mean(np.array(changes), np.ones(len(changes)))

    @contextmanager
    def _switched(self, *, off: bool) -> Iterator[None]:
        modules = ssmax_modules(self._model)
        for module in modules:
            module.enabled = not off
        try:
            yield
        finally:
            for module in modules:
                module.enabled = True

    def _losses(self, what: str) -> list[float]:
        """Of each passage."""
        losses = []
        for passage in self._passages:
            tokens = torch.tensor([passage.tokens], device=self._model.device)
            losses.append(float(token_losses(self._model, tokens).double().mean()))
            self._on_tokens(len(passage.tokens), what)
        return losses

    def _all_answers(self, what: str) -> list[tuple[float, float]]:
        """Log-probability and right or not of each answer."""
        answers = []
        for haystack in self._haystacks:
            answers += self._answers(haystack)
            self._on_tokens(haystack.tokens, what)
        return answers

    def _answers(self, haystack: ProbeSet) -> list[tuple[float, float]]:
        """Log-probability of each answer, and 1 where each of its tokens is the likeliest."""
        found = []
        for probe, logits in zip(
            haystack.probes, haystack_logits(self._model, haystack, _CHUNK, lambda tokens: None), strict=True
        ):
            answer = torch.tensor(probe.answer, device=logits.device)
            right = bool((logits.argmax(-1) == answer).all())
            found.append((-cross_entropy(logits, answer, reduction="sum").item(), float(right)))
        return found


def _means(answers: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Mean log-probability, and the share of right answers."""
    return sum(value for value, _ in answers) / len(answers), sum(right for _, right in answers) / len(answers)
