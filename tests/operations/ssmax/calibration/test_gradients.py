"""The gradients of a haystack, against losses that share no code with them: numeric derivatives of whole prompts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from surgery.evaluation.retrieval import questions
from surgery.evaluation.retrieval.probes import Probe, ProbeSet
from surgery.operations.ssmax.calibration.gradients import row_gradients, set_numbers, ssmax_modules
from surgery.runtime import operate
from tests.families import VOCABULARY, tiny_model

STEP = 2.0**-10
# Full attention, layers that forget keys, and a model that cannot continue from a cache.
FAMILIES = ("llama", "mistral", "gpt2")


def operated(family: str) -> Any:
    from surgery.anatomy import FAMILIES as TABLE

    model = tiny_model(family).double().eval()
    heads = model.config.num_attention_heads
    layers = list(range(model.config.num_hidden_layers))
    options = {
        "name": "ssmax",
        "form": "bias",
        "outputs": "gain",
        "layers": layers,
        "heads": None,
        "reference_length": None,
        "start": {"scale": 0.0, "bias": 1.0, "gain": 1.0},
    }
    operate(model, {**TABLE[family].for_runtime, "operations": [options]})
    generator = np.random.default_rng(0)
    ranges = ((0.8, 1.2), (-0.1, 0.1), (0.8, 1.2))
    values = np.stack([generator.uniform(low, high, (len(layers), heads)) for low, high in ranges], -1)
    model.requires_grad_(False)
    set_numbers(model, values)
    return model


def haystack(questions: int) -> ProbeSet:
    generator = torch.Generator().manual_seed(1)
    shared = tuple(torch.randint(3, VOCABULARY, (40,), generator=generator).tolist())
    probes = []
    for number in range(questions):
        own = tuple(torch.randint(3, VOCABULARY, (3 + number % 4,), generator=generator).tolist())
        answer = tuple(torch.randint(3, VOCABULARY, (1 + number % 3,), generator=generator).tolist())
        probes.append(Probe((*shared, *own), answer, None))
    text = tuple(position for position in range(len(shared)) if position % 7 < 4)
    return ProbeSet(len(shared), tuple(probes), (0.5,) * questions, text)


@torch.no_grad()
def answer_loss(model: Any, probes: tuple[Probe, ...]) -> float:
    total = 0.0
    for probe in probes:
        tokens = torch.tensor([[*probe.prompt, *probe.answer]])
        log = model(input_ids=tokens, use_cache=False).logits[0].double().log_softmax(-1)
        places = range(len(probe.prompt), tokens.shape[1])
        total -= sum(float(log[place - 1, tokens[0, place]]) for place in places)
    return total / len(probes)


@torch.no_grad()
def text_loss(model: Any, one: ProbeSet) -> float:
    tokens = torch.tensor([one.probes[0].prompt[: one.shared]])
    log = model(input_ids=tokens, use_cache=False).logits[0].double().log_softmax(-1)
    return -float(sum(log[place - 1, tokens[0, place]] for place in one.text[1:])) / len(one.text[1:])


@pytest.mark.parametrize("together", [3, 8])
@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_are_derivatives_of_the_losses(family: str, together: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(questions, "TOGETHER", together)
    # The numbers stay float32 in a model; numeric derivatives need float64.
    model = operated(family)
    for module in ssmax_modules(model):
        module.double()
    one = haystack(questions=4)
    found = row_gradients(model, one, torch.Generator().manual_seed(0))
    assert found.drawn == len(one.text) - 1  # all predictions of a short text; its first token has none
    assert found.answer_loss == pytest.approx(answer_loss(model, one.probes), abs=1e-5)
    assert found.text_loss == pytest.approx(text_loss(model, one), abs=1e-5)
    for layer, module in enumerate(ssmax_modules(model)):
        for column, name in enumerate(("bias", "scale", "gain")):
            for head in range(module.num_heads):
                values = getattr(module, name).data
                before = float(values[head])
                losses = []
                for change in (STEP, -STEP):
                    values[head] = before + change
                    losses.append((answer_loss(model, one.probes), text_loss(model, one)))
                values[head] = before
                (up, text_up), (down, text_down) = losses
                assert found.answers[layer, head, column] == pytest.approx((up - down) / (2 * STEP), rel=2e-3, abs=1e-3)
                assert found.text[layer, head, column] == pytest.approx(
                    (text_up - text_down) / (2 * STEP), rel=2e-3, abs=1e-3
                )


def test_nothing_else_learns_and_nothing_is_left_behind() -> None:
    model = operated("llama")
    row_gradients(model, haystack(questions=2), torch.Generator())
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in model.parameters())
