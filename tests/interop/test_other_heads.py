"""Classes with another head refuse a converted checkpoint; the base model takes a head of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from surgery.conversion import convert
from tests.families import VOCABULARY


@pytest.fixture(scope="module")
def converted(make_source: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return convert(make_source("llama"), form="paper", output=tmp_path_factory.mktemp("heads") / "out").output


@pytest.mark.parametrize("task", ["SequenceClassification", "TokenClassification", "QuestionAnswering"])
def test_another_head_is_refused(converted: Path, task: str) -> None:
    with pytest.raises(ValueError, match="Unrecognized configuration class"):
        getattr(transformers, f"AutoModelFor{task}").from_pretrained(converted)
    with pytest.raises(Exception, match="operated on"):  # the stock class says why
        getattr(transformers, f"LlamaFor{task}").from_pretrained(converted)


def test_a_head_of_ones_own_on_the_base_model(converted: Path) -> None:
    tokens = torch.randint(3, VOCABULARY, (2, 12), generator=torch.Generator().manual_seed(1))
    base = transformers.AutoModel.from_pretrained(converted).eval()
    whole = transformers.AutoModelForCausalLM.from_pretrained(converted).eval()
    head = torch.nn.Linear(base.config.hidden_size, 3)
    hidden = base(input_ids=tokens).last_hidden_state
    assert torch.equal(hidden, whole(input_ids=tokens, output_hidden_states=True).hidden_states[-1])
    head(hidden[:, -1]).square().mean().backward()
    scales = [parameter for name, parameter in base.named_parameters() if name.endswith("ssmax.scale")]
    assert scales and all(scale.grad is not None and scale.grad.abs().max() > 0 for scale in scales)
