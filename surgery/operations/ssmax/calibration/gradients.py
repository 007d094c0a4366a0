"""How the loss of answers and of text changes with the numbers of each head: gradients of one haystack.

The text of a haystack goes through the model once. Each question continues from its cache alone, as a user asks it, so
no question sees another one's answer. The backward pass goes through the questions first, then once through the text
with the summed gradients of the cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import cross_entropy

from surgery.evaluation.prefill import chunk_size
from surgery.evaluation.retrieval.probes import Probe, ProbeSet
from surgery.evaluation.retrieval.questions import ask, groups, keeps_keys_alone, repeated, states_of
from surgery.loading.caches import new_cache, with_cache
from surgery.loading.head import LOGITS_AT_ONCE, base_output, head_logits, vocabulary, with_hidden

Array = NDArray[np.float64]

# The numbers of a head by which gradients are taken, in this order: the multiplier is b + s ln n, the output times g.
NUMBERS = ("bias", "scale", "gain")
# Most predictions of a haystack's text whose loss is taken, drawn evenly. Facts are no text: those of one haystack are
# alike, so sharper heads predict them better, and would hide what the text itself loses.
TEXT_TOKENS = 4096
# Questions of a haystack, for a model that cannot continue from a cache: each takes a pass over the whole text.
MOST_ALONE = 4


@dataclass(frozen=True)
class RowGradients:
    """Gradients of one haystack by b, s and g of every chosen head, ``(layers, heads, 3)``.

    Attributes:
        answers: of the mean negative log-probability of a whole answer.
        text: of the mean loss of the drawn predictions of the text.
        drawn: their number.
        answer_loss, text_loss: the two losses.
    """

    answers: Array
    text: Array
    drawn: int
    answer_loss: float
    text_loss: float


def ssmax_modules(model: Any) -> list[Any]:
    """The SSMax module of each chosen layer, in order."""
    found = [(module.layer_idx, module.ssmax) for module in model.modules() if hasattr(module, "ssmax")]
    return [module for _, module in sorted(found, key=lambda item: int(item[0]))]


def set_numbers(model: Any, values: Array) -> None:
    """Set b, s and g of every layer and chosen head.

    Args:
        model: with SSMax of the form ``bias`` and gains of the outputs.
        values: ``(layers, heads, 3)``.
    """
    with torch.no_grad():
        for number, module in enumerate(ssmax_modules(model)):
            for column, name in enumerate(NUMBERS):
                getattr(module, name).copy_(torch.from_numpy(values[number, :, column]))


def row_gradients(model: Any, haystack: ProbeSet, generator: torch.Generator) -> RowGradients:
    """The gradients of a haystack at the model's present numbers.

    Args:
        model: with SSMax of the form ``bias`` and gains on its layers; no other parameter needs a gradient.
        haystack: a text with facts, and a question for each.
        generator: draws the predictions of the text.
    """
    numbers = [getattr(module, name) for module in ssmax_modules(model) for name in NUMBERS]
    cache = new_cache(model)
    continues = chunk_size(model, 1, 2) == 1 and keeps_keys_alone(cache)
    probes = haystack.probes if continues else haystack.probes[:MOST_ALONE]
    tokens = torch.tensor([haystack.probes[0].prompt[: haystack.shared]], device=model.device)
    with ExitStack() as stack:
        for number in numbers:
            number.requires_grad_(True)
            stack.callback(number.requires_grad_, False)
        output = base_output(model, input_ids=tokens, **(with_cache(cache) if continues else {"use_cache": False}))
        predicted = torch.tensor([position for position in haystack.text if position > 0])
        order = torch.randperm(len(predicted), generator=generator)[:TEXT_TOKENS].sort().values
        drawn = predicted[order].to(model.device)
        text_loss, text = _text(model, output, drawn, tokens, numbers, keep=continues)
        measure = _continued if continues else _alone
        answer_loss, answers = measure(model, haystack.shared if continues else 0, probes, cache, numbers)
    return RowGradients(
        answers=_stacked(answers) / len(probes),
        text=_stacked(text) / len(drawn),
        drawn=len(drawn),
        answer_loss=answer_loss / len(probes),
        text_loss=text_loss / len(drawn),
    )


def _text(
    model: Any, output: Any, drawn: torch.Tensor, tokens: torch.Tensor, numbers: Sequence[torch.Tensor], *, keep: bool
) -> tuple[float, Sequence[torch.Tensor]]:
    """Summed loss of the drawn tokens and its gradients; the logits of a few rows are in memory at once."""
    hidden = output["last_hidden_state"]
    cut = hidden.detach().requires_grad_()
    total, pull = 0.0, torch.zeros_like(hidden)
    for rows in drawn.split(max(1, LOGITS_AT_ONCE // vocabulary(model))):
        loss = _loss(model, with_hidden(output, cut), torch.zeros_like(rows), rows - 1, tokens[0, rows])
        pull += torch.autograd.grad(loss, cut)[0]
        total += loss.item()
    return total, torch.autograd.grad(hidden, numbers, pull, retain_graph=keep)


def _continued(
    model: Any, shared: int, probes: Sequence[Probe], cache: Any, numbers: Sequence[torch.Tensor]
) -> tuple[float, list[torch.Tensor]]:
    """Summed loss of the answers and its gradients: the questions continue from the cache of the shared tokens."""
    kept = states_of(cache)
    cut = [state.detach().requires_grad_() for state in kept]
    total, gradients = 0.0, [torch.zeros_like(number) for number in (*numbers, *cut)]
    for asked in groups(probes, shared):
        loss = _answer_loss(model, shared, asked, repeated(cache, cut, len(asked)))
        found = torch.autograd.grad(loss, [*numbers, *cut], allow_unused=True)
        gradients = [old if new is None else old + new for old, new in zip(gradients, found, strict=True)]
        total += loss.item()
    own, pulls = gradients[: len(numbers)], gradients[len(numbers) :]
    # The first layer's keys and values do not depend on any number.
    reached = [number for number, state in enumerate(kept) if state.requires_grad]
    through = torch.autograd.grad(
        [kept[number] for number in reached], numbers, [pulls[number] for number in reached], allow_unused=True
    )
    return total, [old if new is None else old + new for old, new in zip(own, through, strict=True)]


def _alone(
    model: Any, shared: int, probes: Sequence[Probe], cache: None, numbers: Sequence[torch.Tensor]
) -> tuple[float, list[torch.Tensor]]:
    """The same, with a pass over each whole prompt."""
    total, gradients = 0.0, [torch.zeros_like(number) for number in numbers]
    for probe in probes:
        loss = _answer_loss(model, shared, [probe], None)
        gradients = [old + new for old, new in zip(gradients, torch.autograd.grad(loss, numbers), strict=True)]
        total += loss.item()
    return total, gradients


def _answer_loss(model: Any, shared: int, probes: Sequence[Probe], cache: Any) -> torch.Tensor:
    """Summed loss of the answers."""
    asked = ask(model, shared, probes, cache)
    return _loss(model, asked.output, asked.rows, asked.positions, asked.targets)


def _loss(model: Any, output: Any, rows: torch.Tensor, positions: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Summed loss of some predictions; the logits of a few of them are in memory at once."""
    hidden = output["last_hidden_state"][rows, positions][None]
    total = hidden.new_zeros((), dtype=torch.float32)
    each = max(1, LOGITS_AT_ONCE // vocabulary(model))
    for start in range(0, len(targets), each):
        part = hidden[:, start : start + each]
        logits = head_logits(model, with_hidden(output, part), targets[None, start : start + each], 0, part.shape[1])
        total = total + cross_entropy(logits[0].float(), targets[start : start + each], reduction="sum")
    return total


def _stacked(gradients: Sequence[torch.Tensor]) -> Array:
    """``(layers, heads, 3)`` from one vector of each layer's numbers in turn."""
    columns = [gradient.double().cpu().numpy() for gradient in gradients]
    size = len(NUMBERS)
    return np.stack([np.stack(columns[start : start + size], axis=-1) for start in range(0, len(columns), size)])
