"""Questions about one text that continue from its cache, several in one forward pass, each on its own."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from surgery.evaluation.retrieval.probes import Probe
from surgery.loading.caches import with_cache
from surgery.loading.head import base_output

# Most questions in one pass. Each has a copy of the cache: where the text is long, copies cost more than a pass saves.
TOGETHER = 8
_TOKENS_TOGETHER = 2**12


@dataclass(frozen=True)
class Asked:
    """What the base model returns for several questions with their answers.

    Attributes:
        output: of the base model.
        rows, positions: where the tokens of the answers are predicted, answer by answer.
        targets: these tokens.
    """

    output: Any
    rows: torch.Tensor
    positions: torch.Tensor
    targets: torch.Tensor


def keeps_keys_alone(cache: Any) -> bool:
    """Whether every layer of the cache is keys and values, in a window or not."""
    from transformers.cache_utils import DynamicLayer

    return all(isinstance(layer, DynamicLayer) for layer in cache.layers)


def groups(probes: Sequence[Probe], shared: int) -> Iterator[Sequence[Probe]]:
    """The questions of each pass.

    Args:
        probes: the questions.
        shared: tokens of the text.
    """
    size = max(1, min(TOGETHER, _TOKENS_TOGETHER // max(1, shared)))
    for start in range(0, len(probes), size):
        yield probes[start : start + size]


def ask(model: Any, shared: int, probes: Sequence[Probe], cache: Any) -> Asked:
    """Run questions with their answers. Shorter ones are padded at their end, which no answer sees.

    Args:
        model: a causal language model of transformers.
        shared: tokens of the text, which are not run again.
        probes: the questions.
        cache: of the text with a row for each question, from :func:`repeated`; None with ``shared`` 0.
    """
    own = [(*probe.prompt[shared:], *probe.answer) for probe in probes]
    longest = max(map(len, own))
    tokens = torch.tensor([[*part, *part[-1:] * (longest - len(part))] for part in own], device=model.device)
    output = base_output(
        model, input_ids=tokens[:, :-1], **({"use_cache": False} if cache is None else with_cache(cache))
    )
    places = [
        (row, position - 1)
        for row, (part, probe) in enumerate(zip(own, probes, strict=True))
        for position in range(len(part) - len(probe.answer), len(part))
    ]
    rows, positions = torch.tensor(places, device=model.device).T
    return Asked(output, rows, positions, tokens[rows, positions + 1])


def states_of(cache: Any) -> list[torch.Tensor]:
    """Keys and values of every layer in turn."""
    return [state for layer in cache.layers for state in (layer.keys, layer.values)]


def repeated(cache: Any, states: Sequence[torch.Tensor], times: int) -> Any:
    """A cache with these keys and values in each of several rows, to continue once; ``cache`` stays as it is.

    Args:
        cache: of one row.
        states: in the order of :func:`states_of`.
        times: number of rows.
    """
    lent = copy.copy(cache)
    lent.layers = [copy.copy(layer) for layer in cache.layers]
    for number, layer in enumerate(lent.layers):
        layer.keys, layer.values = (
            state.expand(times, *state.shape[1:]) for state in states[2 * number : 2 * number + 2]
        )
    return lent
