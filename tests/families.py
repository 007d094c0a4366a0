"""The matrix of model families: for each row of anatomy.FAMILIES a tiny random configuration.

Every feature that makes a family different is switched on: windows shorter than the test sequences, soft caps,
partial RoPE, query norms, grouped heads, experts.
"""

from __future__ import annotations

from typing import Any

VOCABULARY = 96
TRAINED_LENGTH = 64
WINDOW = 16

_COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": TRAINED_LENGTH,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    # Large weights, so that attention is far from uniform and a wrong n shows.
    "initializer_range": 0.3,
}

TINY: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"head_dim": 8, "sliding_window": None},
    "qwen2": {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 2},
    "qwen3": {"head_dim": 16, "use_sliding_window": False},
    "qwen3_moe": {"head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24},
    "gemma2": {"head_dim": 8, "sliding_window": WINDOW, "query_pre_attn_scalar": 8, "attn_logit_softcapping": 5.0},
    "gemma3_text": {"head_dim": 8, "sliding_window": WINDOW, "query_pre_attn_scalar": 8, "sliding_window_pattern": 2},
    "phi3": {"partial_rotary_factor": 0.5, "sliding_window": None, "original_max_position_embeddings": TRAINED_LENGTH},
    "olmo2": {},
    "granite": {"attention_multiplier": 0.3, "residual_multiplier": 0.9, "logits_scaling": 2.0},
    "gpt_neox": {"num_key_value_heads": None, "rotary_pct": 0.5, "use_parallel_residual": True},
    "cohere": {"use_qk_norm": True, "logit_scale": 0.5},
}


def tiny_config(model_type: str, **changes: Any) -> Any:
    """A transformers config of the family, with 3 layers and 4 heads."""
    from transformers import AutoConfig

    values = {**_COMMON, **TINY[model_type], **changes}
    if values["num_key_value_heads"] is None:
        del values["num_key_value_heads"]
    return AutoConfig.for_model(model_type, **values)


def tiny_model(model_type: str, **changes: Any) -> Any:
    """A random float32 model of the family in evaluation mode; the same weights each time."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(tiny_config(model_type, **changes), attn_implementation="eager")
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.dim() == 1:  # norms and biases start as constants, which would hide their order
                    parameter.add_(torch.randn_like(parameter) * (0.1 if "norm" in name else 0.02))
    return model.float().eval()
