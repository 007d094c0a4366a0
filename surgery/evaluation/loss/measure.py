"""Loss by position, and sliding-window perplexity."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from surgery.data import Document
from surgery.errors import SurgeryError
from surgery.evaluation.loss.options import LossPart, SlidingPart
from surgery.evaluation.loss.token_losses import token_losses
from surgery.evaluation.measure import Measure, OnTokens, PartPlan, Subject, Unit
from surgery.evaluation.passages import Passage, cut_passages, cut_windows
from surgery.evaluation.prefill import readable_errors

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class LossMeasure(Measure):
    """The loss of every next token of each sequence."""

    part: LossPart

    def plan(self, tokenizer: PreTrainedTokenizerBase, vocabulary: int, documents: Sequence[Document]) -> PartPlan:
        """One unit for each sequence."""
        passages, data = cut_passages(documents, tokenizer, length=self.part.length, limit=self.part.documents)
        return PartPlan(_units(passages), asdict(data))

    def run(self, subject: Subject, units: Sequence[Unit], on_tokens: OnTokens) -> list[dict[str, Any]]:
        """``document`` and ``losses``, one for each prediction."""
        return _losses(subject, units, self.part.chunk, on_tokens)


@dataclass(frozen=True)
class SlidingMeasure(Measure):
    """The loss of every token of whole documents, each predicted from at least a window less one stride."""

    part: SlidingPart

    def plan(self, tokenizer: PreTrainedTokenizerBase, vocabulary: int, documents: Sequence[Document]) -> PartPlan:
        """One unit for each window."""
        part = self.part
        windows, data = cut_windows(
            documents, tokenizer, length=part.length, stride=part.stride, tokens=part.tokens, limit=part.documents
        )
        return PartPlan(_units(windows), asdict(data))

    def run(self, subject: Subject, units: Sequence[Unit], on_tokens: OnTokens) -> list[dict[str, Any]]:
        """``document``, and ``losses`` of the tokens that no earlier window has predicted."""
        return _losses(subject, units, self.part.chunk, on_tokens)


def _units(passages: Sequence[Passage]) -> tuple[Unit, ...]:
    return tuple(
        Unit(str(number), len(passage.tokens), len(passage.tokens), passage) for number, passage in enumerate(passages)
    )


def _losses(subject: Subject, units: Sequence[Unit], chunk: int, on_tokens: OnTokens) -> list[dict[str, Any]]:
    passages = [unit.payload for unit in units]
    input_ids = torch.tensor([passage.tokens for passage in passages], device=subject.model.device)
    with readable_errors(subject.name, *input_ids.shape):
        losses = token_losses(subject.model, input_ids, chunk=chunk, on_tokens=on_tokens).numpy()
    found = []
    for passage, row in zip(passages, losses, strict=True):
        check_finite(row, passage.document, subject.name)
        found.append({"document": passage.document, "losses": shortest(row[passage.skip :])})
    return found


def shortest(values: NDArray[np.float32]) -> list[float]:
    """The float32 numbers with as few digits as reproduce them exactly."""
    return [float(str(value)) for value in values]


def check_finite(losses: NDArray[Any], document: str, name: str) -> None:
    """Raise an error with the positions where a loss is not a finite number."""
    bad = np.flatnonzero(~np.isfinite(losses))
    if not bad.size:
        return
    breaks = np.flatnonzero(np.diff(bad) > 1)
    starts, ends = bad[[0, *(breaks + 1)]] + 1, bad[[*breaks, -1]] + 1
    shown = ", ".join(
        str(first) if first == last else f"{first}-{last}" for first, last in zip(starts[:5], ends[:5], strict=True)
    )
    more = f" and {len(starts) - 5} more ranges" if len(starts) > 5 else ""
    raise SurgeryError(
        f"{name}: the loss is not a finite number at {bad.size} of {losses.size} positions of a sequence of "
        f"{document}: positions {shown}{more}",
        hint="Run `surgery verify`, which finds NaN in weights. If float16 overflows, pass --dtype float32.",
    )
