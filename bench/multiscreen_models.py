"""The models that `bench.multiscreen` compares, with random weights."""

from __future__ import annotations

import math
from typing import Any

TRAINED = 1024
WINDOW = 256  # of the windowed Llama-like model; the widest window of Multiscreen at the start is 257


def build(name: str, psi: int, vocabulary: int) -> Any:
    """A model with random weights, in float32."""
    if name == "package":
        from multiscreen.multiscreen import MultiScreen

        return MultiScreen(num_tokens=vocabulary, dim=psi**2, depth=psi, heads=psi, dim_keys=16, dim_values=64).eval()
    if name == "repository":
        from multiscreen import MultiscreenConfig as Sizes
        from multiscreen import MultiscreenModel

        return MultiscreenModel(Sizes.from_psi(psi, vocab_size=vocabulary, max_seq_len=TRAINED)).eval()
    if name in ("llama", "windowed llama"):
        from transformers import AttentionInterface, LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

        from bench.papers.pairs import twin_sizes
        from surgery.models import plan_new

        wanted = plan_new("multiscreen", {"psi": psi}, vocab_size=vocabulary).parameters
        sizes = twin_sizes(wanted, vocabulary, TRAINED)
        config: dict[str, Any] = {
            "vocab_size": vocabulary,
            "hidden_size": sizes["width"],
            "intermediate_size": sizes["mlp_width"],
            "num_hidden_layers": sizes["layers"],
            "num_attention_heads": sizes["heads"],
            "num_key_value_heads": sizes["heads"],
            "max_position_embeddings": 2**16,
            "tie_word_embeddings": True,
        }
        if name == "llama":
            return LlamaForCausalLM(LlamaConfig(**config)).eval()
        AttentionInterface.register("in blocks", attention_in_blocks)
        windows = MistralConfig(**config, sliding_window=WINDOW, attn_implementation="in blocks")
        return MistralForCausalLM(windows).eval()
    from surgery.models.multiscreen import modeling
    from surgery.models.multiscreen.configuration import MultiscreenConfig

    sizes = {"hidden_size": psi**2, "num_hidden_layers": psi, "num_attention_heads": psi}
    own = modeling.MultiscreenForCausalLM(MultiscreenConfig(vocabulary, max_position_embeddings=TRAINED, **sizes))
    if name == "half infinite":
        for layer in own.model.layers:
            layer.tiles.log_window.data[psi // 2 :] = math.log(2.0 * TRAINED)
    if name == "dense":
        modeling.accepted_sum = dense_sum
    return own.eval()


def dense_sum(query: Any, key: Any, value: Any, documents: Any, heads: Any) -> Any:
    """The equations of the paper over all queries and keys at once."""
    import torch

    from surgery.models.multiscreen.groups import softmask

    alpha = (1 - heads.tightness[:, None, None] * (1 - query @ key.transpose(-1, -2))).relu().square()
    places = torch.arange(key.shape[2])
    distance = places[-query.shape[2] :, None] - places
    return (alpha * softmask(distance, heads.window[:, None, None])) @ value


def attention_in_blocks(
    module: Any, query: Any, key: Any, value: Any, attention_mask: Any, scaling: float | None = None, **_: Any
) -> tuple[Any, None]:
    """Softmax attention of one row within ``WINDOW`` tokens, in time and memory that are linear in the length.

    Blocks of as many queries as the window take their own keys and those of the block before. The queries are the last
    of the keys.

    Args:
        query: (1, heads, queries, head_dim).
        key: (1, heads, keys, head_dim).
        value: alike.
    """
    import torch
    from torch.nn.functional import pad, scaled_dot_product_attention

    queries, past = query.shape[2], key.shape[2] - query.shape[2]
    if queries == 1:
        near = (states[:, :, -WINDOW:] for states in (key, value))
        return scaled_dot_product_attention(query, *near, scale=scaling).transpose(1, 2), None
    if past > WINDOW:
        key, value, past = key[:, :, past - WINDOW :], value[:, :, past - WINDOW :], WINDOW
    behind = -queries % WINDOW
    blocks = pad(query, (0, 0, 0, behind))[0].unflatten(1, (-1, WINDOW)).transpose(0, 1)
    keys, values = (
        pad(states, (0, 0, WINDOW - past, behind))[0].unfold(1, 2 * WINDOW, WINDOW).permute(1, 0, 3, 2)
        for states in (key, value)
    )
    distance = torch.arange(WINDOW, 2 * WINDOW)[:, None] - torch.arange(2 * WINDOW)
    seen = ((distance >= 0) & (distance < WINDOW)).repeat(len(blocks), 1, 1, 1)
    seen[0, :, :, : WINDOW - past] = False  # padding
    sums = scaled_dot_product_attention(blocks, keys, values, attn_mask=seen, scale=scaling)
    return sums.transpose(1, 2).flatten(0, 1)[None, :queries], None
