"""How a model continues the beginnings of some texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch

from surgery.data import Document
from surgery.errors import SurgeryError
from surgery.evaluation.generation.options import GenerationPart
from surgery.evaluation.measure import Measure, OnTokens, PartPlan, Subject, Unit
from surgery.evaluation.passages import Passage, cut_passages
from surgery.evaluation.prefill import prefill, readable_errors
from surgery.loading.caches import with_cache

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class GenerationMeasure(Measure):
    """The greedy continuation of each prompt."""

    part: GenerationPart
    cost = 2.5  # each new token is a pass that reads all weights

    def plan(self, tokenizer: PreTrainedTokenizerBase, vocabulary: int, documents: Sequence[Document]) -> PartPlan:
        """One unit for each prompt; prompts run one at a time, whatever the batch size."""
        passages, data = cut_passages(documents, tokenizer, length=self.part.length, limit=self.part.documents)
        units = [
            Unit(str(number), len(passage.tokens) + self.part.tokens, number, passage)
            for number, passage in enumerate(passages)
        ]
        return PartPlan(tuple(units), asdict(data))

    def run(self, subject: Subject, units: Sequence[Unit], on_tokens: OnTokens) -> list[dict[str, Any]]:
        """``document``, ``prompt`` as text, ``prompt_tokens``, and the continuation: ``tokens`` and ``text``."""
        found = []
        for unit in units:
            passage: Passage = unit.payload
            with readable_errors(subject.name, 1, unit.tokens):
                tokens = self._continued(subject, passage, on_tokens)
            prompt, text = (str(subject.tokenizer.decode(list(ids))) for ids in (passage.tokens, tokens))
            of_prompt = {"document": passage.document, "prompt": prompt, "prompt_tokens": len(passage.tokens)}
            found.append({**of_prompt, "tokens": tokens, "text": text})
        return found

    @torch.no_grad()
    def _continued(self, subject: Subject, passage: Passage, on_tokens: OnTokens) -> list[int]:
        """The likeliest token, again and again; the last one may be the end of the text."""
        model = subject.model
        prompt = torch.tensor([passage.tokens], device=model.device)
        cache, logits = prefill(model, prompt, self.part.chunk, on_tokens)
        found: list[int] = []
        while True:
            if logits.isnan().any():
                raise SurgeryError(f"{subject.name}: the logits after a prompt of {passage.document} are not numbers")
            found.append(int(logits[0].argmax()))
            on_tokens(1)
            if len(found) == self.part.tokens:
                return found
            if found[-1] == subject.tokenizer.eos_token_id:
                on_tokens(self.part.tokens - len(found))  # what is left out counts as done
                return found
            logits = model(input_ids=prompt.new_tensor([found[-1:]]), **with_cache(cache)).logits[:, -1].float()
