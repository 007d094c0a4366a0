"""Retrieval: whether the model completes a probe, by length and depth."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from surgery.data import Document
from surgery.errors import SurgeryError
from surgery.evaluation.measure import Measure, OnTokens, PartPlan, Subject, Unit
from surgery.evaluation.prefill import prefill, readable_errors
from surgery.evaluation.retrieval.haystacks import haystack_logits, plan_haystacks
from surgery.evaluation.retrieval.options import RetrievalPart
from surgery.evaluation.retrieval.probes import Probe, make_probe
from surgery.loading.caches import with_cache

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class RetrievalMeasure(Measure):
    """Exact match of the greedy continuation, and the loss and log-probability of the right answer."""

    part: RetrievalPart
    version = 2

    def plan(self, tokenizer: PreTrainedTokenizerBase, vocabulary: int, documents: Sequence[Document]) -> PartPlan:
        """One unit for each prompt, or for each haystack."""
        part = self.part
        if part.task == "recall":
            return plan_haystacks(part, tokenizer, documents)
        units = []
        digest = hashlib.sha256()
        for length in part.lengths:
            for depth in part.depths:
                for sample in range(part.samples):
                    key = f"{length}/{depth}/{sample}"
                    probe = make_probe(
                        part.task,
                        length,
                        depth,
                        seed=f"{part.task}/{part.seed}/{key}",
                        tokenizer=tokenizer,
                        vocabulary=vocabulary,
                        needles=part.needles,
                    )
                    digest.update(json.dumps([key, probe.prompt, probe.answer]).encode())
                    units.append(
                        Unit(
                            key,
                            len(probe.prompt) + len(probe.answer),
                            (len(probe.prompt), len(probe.answer)),
                            (length, depth, probe),
                        )
                    )
        return PartPlan(tuple(units), {"prompts": len(units), "fingerprint": digest.hexdigest()})

    def run(self, subject: Subject, units: Sequence[Unit], on_tokens: OnTokens) -> list[dict[str, Any]]:
        """Values of each prompt, or of each haystack a list of them under ``answers``.

        ``length``, ``depth``, ``tokens``; ``exact``: 0 or 1; ``right``: share of the answer's tokens; ``loss``: nats
        per token of the answer; ``log_probability``: of the whole answer.
        """
        if self.part.task == "recall":
            return [self._haystack(subject, unit, on_tokens) for unit in units]
        probes: list[Probe] = [unit.payload[2] for unit in units]
        prompts = torch.tensor([probe.prompt for probe in probes], device=subject.model.device)
        answers = torch.tensor([probe.answer for probe in probes], device=subject.model.device)
        with readable_errors(subject.name, *prompts.shape):
            logits = _answer_logits(subject.model, prompts, answers, self.part.chunk, on_tokens)
        found = []
        for unit, probe, own in zip(units, probes, logits, strict=True):
            length, depth, _ = unit.payload
            found.append({"length": length, "depth": depth, **self._score(subject, probe, own)})
            on_tokens(len(probe.answer))
        return found

    def _haystack(self, subject: Subject, unit: Unit, on_tokens: OnTokens) -> dict[str, Any]:
        length, haystack = unit.payload
        with readable_errors(subject.name, 1, length):
            logits = haystack_logits(subject.model, haystack, self.part.chunk, on_tokens)
        answers = [
            {"length": length, "depth": depth, **self._score(subject, probe, own)}
            for depth, probe, own in zip(haystack.depths, haystack.probes, logits, strict=True)
        ]
        return {"answers": answers}

    def _score(self, subject: Subject, probe: Probe, logits: torch.Tensor) -> dict[str, Any]:
        """How well the model gives an answer.

        Args:
            subject: the model.
            probe: the prompt and its answer.
            logits: for each token of the answer, ``(answer, vocabulary)``.
        """
        answer = torch.tensor(probe.answer, device=logits.device)
        total = torch.nn.functional.cross_entropy(logits, answer, reduction="sum").item()
        if math.isnan(total):
            raise SurgeryError(f"{subject.name}: the loss of the answer is not a number (task {self.part.task})")
        guess = logits.argmax(-1).tolist()
        hits = [token == right for token, right in zip(guess, probe.answer, strict=True)]
        exact = all(hits) or self._other_tokens(subject, probe, guess, hits.index(False))
        return {
            "tokens": len(probe.prompt) + len(probe.answer),
            "exact": int(exact),
            "right": 1.0 if exact else sum(hits) / len(hits),
            "loss": total / len(hits),
            "log_probability": -total,
        }

    def _other_tokens(self, subject: Subject, probe: Probe, guess: list[int], miss: int) -> bool:
        """Whether the greedy continuation is the same text in other tokens, as when two digits are one token."""
        if probe.text is None:
            return False
        written = [*probe.answer[:miss], guess[miss]]
        wanted = probe.text.strip()
        while True:
            text = str(subject.tokenizer.decode(written)).strip()
            if text.startswith(wanted):
                return True
            if not wanted.startswith(text) or not text or len(written) > len(wanted):
                return False
            tokens = torch.tensor([[*probe.prompt, *written]], device=subject.model.device)
            _, logits = prefill(subject.model, tokens, self.part.chunk)
            written.append(int(logits.argmax()))


def _answer_logits(
    model: Any, prompts: torch.Tensor, answers: torch.Tensor, chunk: int, on_tokens: OnTokens
) -> torch.Tensor:
    """Logits for each token of the answer, given the prompt and the answer before it, ``(batch, answer, vocabulary)``.

    Greedy decoding gives the answer exactly if each of its tokens has the greatest logit here.
    """
    cache, first = prefill(model, prompts, chunk, on_tokens)
    if answers.shape[1] == 1:
        return first[:, None]
    with torch.no_grad():
        rest = model(input_ids=answers[:, :-1], **with_cache(cache)).logits.float()
    return torch.cat([first[:, None], rest], dim=1)
