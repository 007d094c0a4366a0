"""The public package `multiscreen` (0.2.0; the variant v1) and our model give the same logits with the same weights."""

from __future__ import annotations

import pytest
import torch

from surgery.models.multiscreen.configuration import MultiscreenConfig
from surgery.models.multiscreen.modeling import MultiscreenForCausalLM

package = pytest.importorskip("multiscreen.multiscreen", reason="needs `pip install multiscreen`")


@torch.no_grad()
def test_the_same_weights_give_the_same_logits() -> None:
    """In the package, no window is infinite before a training step; queries and gates, keys and values lie together."""
    torch.manual_seed(0)
    heads, width, key, value = 3, 32, 16, 8
    theirs = package.MultiScreen(num_tokens=40, dim=width, depth=2, heads=heads, dim_keys=key, dim_values=value).eval()
    config = MultiscreenConfig(40, width, 2, heads, key, value, max_position_embeddings=10**6, variant="v1")
    model = MultiscreenForCausalLM(config).eval()
    model.model.embed_tokens.weight.copy_(theirs.token_embeds)
    model.model.log_embedding_scale.copy_(theirs.scale_embed.log_scales)
    model.log_logit_scale.copy_(theirs.scale_unembed.log_scales)
    for layer, other in zip(model.model.layers, theirs.layers, strict=True):
        other.inverse_acceptance_width.log_scales.copy_(torch.tensor([-1.0, 0.0, -2.0]))
        other.soft_mask.learned_window.log_scales.copy_(torch.tensor([1.0, 2.0, 5.0]))
        tiles = layer.tiles
        for joined, first, second in (
            (other.to_queries_gates, tiles.q_proj, tiles.g_proj),
            (other.to_keys_values, tiles.k_proj, tiles.v_proj),
        ):
            weight = joined.weight.unflatten(0, (heads, key + value))
            first.weight.copy_(weight[:, :key].flatten(0, 1))
            second.weight.copy_(weight[:, key:].flatten(0, 1))
        tiles.o_proj.weight.copy_(other.to_out.weight)
        tiles.log_window.copy_(other.soft_mask.learned_window.log_scales)
        tiles.acceptance.copy_(other.inverse_acceptance_width.log_scales)
        tiles.log_output_scale.copy_(other.head_wise_scale.log_scales)
    tokens = torch.randint(40, (2, 300))
    assert (model(tokens, use_cache=False).logits - theirs(tokens)).abs().max() < 1e-4
