"""Small Multiscreen models whose heads accept some keys and reject others."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from surgery.models.multiscreen.configuration import MultiscreenConfig
from surgery.models.multiscreen.modeling import MultiscreenForCausalLM

VOCABULARY = 40


def make(variant: str = "v3", **changes: Any) -> Any:
    """A model of two layers and three heads; windows of 4 and 11 tokens and one beyond the trained length of 16."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 3, "key_dim": 6, "value_dim": 8}
    config = MultiscreenConfig(
        vocab_size=VOCABULARY, max_position_embeddings=16, window_threshold=64, variant=variant, **{**sizes, **changes}
    )
    torch.manual_seed(0)
    model = MultiscreenForCausalLM(config).eval()
    sign = 1 if variant == "v3" else -1
    with torch.no_grad():
        for layer in model.model.layers:
            layer.tiles.log_window.copy_(torch.tensor([math.log(3.2), math.log(10.4), math.log(20.7)]))
            layer.tiles.acceptance.copy_(sign * torch.tensor([1.5, 0.5, 2.5]))
            layer.tiles.log_output_scale.add_(1.0)
    return model


@pytest.fixture
def model() -> Any:
    return make()


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.randint(VOCABULARY, (2, 40), generator=torch.Generator().manual_seed(1))
