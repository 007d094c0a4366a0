"""A check that a model is causal: otherwise a prediction sees the token that it predicts."""

from __future__ import annotations

from typing import Any

import torch

from surgery.errors import CheckpointError
from surgery.evaluation.prefill import readable_errors
from surgery.loading.head import vocabulary

_TOKENS = 8


@torch.no_grad()
def check_causal(model: Any, name: str) -> None:
    """Change the last token and check that predictions before it do not change.

    Raises:
        CheckpointError: they change: the model is an encoder, or its attention goes both ways.
    """
    size = vocabulary(model)
    one = torch.arange(_TOKENS, device=model.device)[None] % size
    other = one.clone()
    other[0, -1] = (one[0, -1] + size // 2) % size
    with readable_errors(name, 1, _TOKENS):
        before, after = (model(input_ids=tokens, use_cache=False).logits[0, :-1].float() for tokens in (one, other))
    if not (before.isfinite().all() and after.isfinite().all()):
        return  # the measurement reports the position and the text
    change = (before - after).abs().max().item()
    if change > 1e-2 * max(1.0, before.abs().max().item()):
        raise CheckpointError(
            f"{name}: this model is not causal: changing a token changes earlier predictions (by {change:.3g})",
            hint="Encoders and models that fill in blanks have no next-token loss. Pass a causal language model.",
        )
