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
from surgery.evaluation.retrieval.options import RetrievalPart
from surgery.evaluation.retrieval.probes import Probe, make_probe
from surgery.loading.caches import with_cache

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class RetrievalMeasure(Measure):
    """Exact match of the greedy continuation, and the loss of the right answer."""

    part: RetrievalPart

    def plan(self, tokenizer: PreTrainedTokenizerBase, vocabulary: int, documents: Sequence[Document]) -> PartPlan:
        """One unit for each prompt."""
        part = self.part
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
        """``length``, ``depth``, ``exact`` (0 or 1), ``right`` (share of the answer's tokens) and ``loss``."""
        probes: list[Probe] = [unit.payload[2] for unit in units]
        prompts = torch.tensor([probe.prompt for probe in probes], device=subject.model.device)
        answers = torch.tensor([probe.answer for probe in probes], device=subject.model.device)
        with readable_errors(subject.name, *prompts.shape):
            logits = _answer_logits(subject.model, prompts, answers, self.part.chunk, on_tokens)
        losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), answers, reduction="none").mean(1)
        found = []
        for unit, probe, guess, loss in zip(units, probes, logits.argmax(-1).tolist(), losses.tolist(), strict=True):
            if math.isnan(loss):
                raise SurgeryError(f"{subject.name}: the loss of the answer is not a number (task {self.part.task})")
            hits = [token == right for token, right in zip(guess, probe.answer, strict=True)]
            exact = all(hits) or self._other_tokens(subject, probe, guess, hits.index(False))
            length, depth, _ = unit.payload
            found.append(
                {
                    "length": length,
                    "depth": depth,
                    "tokens": len(probe.prompt) + len(probe.answer),
                    "exact": int(exact),
                    "right": 1.0 if exact else sum(hits) / len(hits),
                    "loss": loss,
                }
            )
            on_tokens(len(probe.answer))
        return found

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
