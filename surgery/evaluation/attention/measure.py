"""How attention spreads, by layer, head and n."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch

from surgery.data import Document
from surgery.evaluation.attention.options import AttentionPart
from surgery.evaluation.attention.weights import StatisticsSettings, observed_attention, range_edges
from surgery.evaluation.measure import Measure, OnTokens, PartPlan, Subject, Unit
from surgery.evaluation.passages import cut_passages
from surgery.evaluation.prefill import prefill, readable_errors

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class AttentionMeasure(Measure):
    """Statistics of the weights of every attention module."""

    part: AttentionPart
    cost = 1.3  # the weights are computed beside the output

    def plan(self, tokenizer: PreTrainedTokenizerBase, vocabulary: int, documents: Sequence[Document]) -> PartPlan:
        """One unit for each sequence; sequences run one at a time, whatever the batch size."""
        passages, data = cut_passages(documents, tokenizer, length=self.part.length, limit=self.part.documents)
        units = [Unit(str(number), len(passage.tokens), number, passage) for number, passage in enumerate(passages)]
        return PartPlan(tuple(units), asdict(data))

    def run(self, subject: Subject, units: Sequence[Unit], on_tokens: OnTokens) -> list[dict[str, Any]]:
        """``document``, ``tokens`` and the statistics of the weights."""
        part = self.part
        settings = StatisticsSettings(range_edges(part.length), part.first_tokens, part.block)
        found = []
        for unit in units:
            input_ids = torch.tensor([unit.payload.tokens], device=subject.model.device)
            with (
                readable_errors(subject.name, *input_ids.shape),
                observed_attention(subject.model, settings) as statistics,
            ):
                prefill(subject.model, input_ids, part.chunk, on_tokens)
            found.append({"document": unit.payload.document, "tokens": len(unit.payload.tokens), **statistics.result()})
        return found
