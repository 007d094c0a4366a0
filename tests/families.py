"""The matrix of model families: a tiny random configuration for each row of anatomy.FAMILIES.

Every feature in which families differ is switched on: windows shorter than the test sequences, soft caps, partial RoPE,
query norms, grouped heads, experts.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
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

# Parts that several families share.
_MOE: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
_LOCAL_MOE: dict[str, Any] = {"num_local_experts": 4, "num_experts_per_tok": 2}
# The default is 1, which no Granite has: scores far too sharp for float32, whose rounding they blow up.
_GRANITE: dict[str, Any] = {"attention_multiplier": 0.3}
_ROUTED: dict[str, Any] = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
_LINEAR: dict[str, Any] = {
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
_MAMBA: dict[str, Any] = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1}
_MROPE: dict[str, Any] = {
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 10000.0,
        "mrope_section": [1, 1, 2],
        "partial_rotary_factor": 1.0,
    }
}

_LLAMA4: dict[str, Any] = {
    "head_dim": 8,
    "attention_chunk_size": WINDOW,
    "no_rope_layer_interval": 2,
    "floor_scale": WINDOW,
    "intermediate_size_mlp": 48,
    "num_local_experts": 4,
    "interleave_moe_layer_step": 2,
}

# Parts of models of vision and language: two tokens of the vocabulary stand for an image and its frame.
IMAGE_TOKEN = VOCABULARY
_VISION: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "patch_size": 14}
_IMAGES: dict[str, Any] = {"image_token_id": IMAGE_TOKEN, "image_token_index": IMAGE_TOKEN}
_WITH_IMAGES: dict[str, Any] = {"vocab_size": VOCABULARY + 4}

TINY: dict[str, dict[str, Any]] = {
    "afmoe": {**_MOE, "head_dim": 8, "sliding_window": WINDOW, "num_dense_layers": 1, "global_attn_every_n_layers": 2},
    "apertus": {},
    "arcee": {},
    "aria_text": {"moe_num_experts": 4, "moe_topk": 2, "moe_num_shared_experts": 1},
    "bamba": {**_MAMBA, "mamba_expand": 2, "attn_layer_indices": [0, 2]},
    "biogpt": {"scale_embedding": True},
    "bitnet": {},
    "cohere": {"use_qk_norm": True, "logit_scale": 0.5},
    "cohere2": {"sliding_window": WINDOW, "layer_types": None},
    "cohere2_moe": {"sliding_window": WINDOW, "num_experts": 4, "num_experts_per_tok": 2},
    "ctrl": {},
    "cwm": {"sliding_window": WINDOW},
    "dbrx": {
        "d_model": 32,
        "n_heads": 4,
        "n_layers": 4,
        "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8},
        "ffn_config": {"ffn_hidden_size": 24, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "diffllama": {},
    "doge": {"keep_window_size": 2048},
    "dots1": {**_ROUTED, "n_shared_experts": 1, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1},
    "ernie4_5": {"head_dim": 8},
    "ernie4_5_moe": {"moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 24, "moe_layer_start_index": 1},
    "exaone4": {"sliding_window": WINDOW, "sliding_window_pattern": 2},
    "exaone_moe": {**_MOE, "sliding_window": WINDOW, "num_shared_experts": 1, "n_group": 1, "topk_group": 1},
    "falcon_h1": {
        "mamba_n_heads": 4,
        "mamba_d_head": 16,
        "mamba_d_ssm": 64,
        "mamba_d_state": 8,
        "mamba_n_groups": 1,
        "head_dim": 8,
    },
    "flex_olmo": {"num_experts": 4, "num_experts_per_tok": 2},
    "gemma": {"head_dim": 8},
    "gemma2": {"head_dim": 8, "sliding_window": WINDOW, "query_pre_attn_scalar": 8, "attn_logit_softcapping": 5.0},
    "gemma3": {
        "text_config": {
            **_WITH_IMAGES,
            "head_dim": 8,
            "sliding_window": WINDOW,
            "query_pre_attn_scalar": 8,
            "sliding_window_pattern": 2,
        },
        "vision_config": {**_VISION, "num_hidden_layers": 1, "image_size": 56},
        "mm_tokens_per_image": 4,
        **_IMAGES,
    },
    "gemma3_text": {"head_dim": 8, "sliding_window": WINDOW, "query_pre_attn_scalar": 8, "sliding_window_pattern": 2},
    "gemma3n_text": {
        "head_dim": 8,
        "sliding_window": WINDOW,
        "layer_types": ["full_attention", "sliding_attention", "full_attention"],
        "num_kv_shared_layers": 0,
        "vocab_size_per_layer_input": 96,
        "hidden_size_per_layer_input": 8,
        "laurel_rank": 8,
        "activation_sparsity_pattern": [0.0] * 3,
        "altup_num_inputs": 2,
    },
    "glm": {"head_dim": 8},
    "glm4": {"head_dim": 8},
    "glm4_moe": {**_ROUTED, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1, "head_dim": 8},
    "gpt2": {
        "num_key_value_heads": None,
    },
    "gpt_bigcode": {
        "num_key_value_heads": None,
    },
    "gpt_neox": {"num_key_value_heads": None, "rotary_pct": 0.5, "use_parallel_residual": True},
    "gpt_oss": {**_LOCAL_MOE, "head_dim": 8, "sliding_window": WINDOW},
    "granite": {**_GRANITE, "residual_multiplier": 0.9, "logits_scaling": 2.0},
    "granite_swa": {**_GRANITE},
    "granitemoe": {**_GRANITE, **_LOCAL_MOE},
    "granitemoe_swa": {**_GRANITE},
    "granitemoehybrid": {
        **_GRANITE,
        **_LOCAL_MOE,
        **_MAMBA,
        "shared_intermediate_size": 24,
        "layer_types": ["attention", "mamba", "attention"],
    },
    "granitemoeshared": {**_GRANITE, "initializer_range": 0.2, **_LOCAL_MOE, "shared_intermediate_size": 24},
    "helium": {"head_dim": 8},
    "hunyuan_v1_dense": {"head_dim": 8},
    "hunyuan_v1_moe": {"head_dim": 8, "num_experts": 4, "moe_topk": 2},
    "hyperclovax": {},
    "jais2": {},
    "jamba": {
        "num_experts": 2,
        "num_experts_per_tok": 1,
        "attn_layer_period": 2,
        "attn_layer_offset": 0,
        "mamba_d_state": 8,
        "mamba_dt_rank": 4,
        "use_mamba_kernels": False,
    },
    "lfm2": {"layer_types": ["full_attention", "conv", "full_attention"]},
    "lfm2_moe": {**_MOE, "layer_types": ["full_attention", "conv", "full_attention"], "num_dense_layers": 1},
    "lfm3": {"layer_types": None},
    "llama": {},
    "llama4": {
        "text_config": {**_LLAMA4, **_WITH_IMAGES},
        "vision_config": {
            **_VISION,
            "num_hidden_layers": 1,
            "image_size": 56,
            "intermediate_size": 64,
            "vision_output_dim": 16,
            "projector_input_dim": 16,
            "projector_output_dim": 16,
        },
        **_IMAGES,
    },
    "llama4_text": _LLAMA4,
    "mellum": {**_MOE, "head_dim": 8},
    "mimo_v2_flash": {**_ROUTED, "head_dim": 8},
    "minimax_m2": {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 8, "rotary_dim": 4},
    "ministral": {
        "head_dim": 8,
        "sliding_window": WINDOW,
        "layer_types": ["full_attention", "sliding_attention", "full_attention"],
    },
    "mistral": {"head_dim": 8, "sliding_window": None},
    "mistral3": {
        "text_config": {**_WITH_IMAGES, "head_dim": 8, "sliding_window": None},
        "vision_config": {**_VISION, "num_hidden_layers": 1, "head_dim": 8, "image_size": 56},
        **_IMAGES,
    },
    "mixtral": {**_LOCAL_MOE, "sliding_window": None},
    "modernbert-decoder": {
        "local_attention": 16,
        "global_attn_every_n_layers": 2,
        "num_key_value_heads": None,
        "cls_token_id": 1,
        "sep_token_id": 1,
    },
    "nanochat": {},
    "nemotron": {},
    "nemotron_h": {
        "initializer_range": 0.1,
        "head_dim": 8,
        "num_hidden_layers": None,
        "hybrid_override_pattern": "*M-*",
        "mamba_num_heads": 8,
        "mamba_head_dim": 8,
        "ssm_state_size": 8,
        "n_groups": 1,
    },
    "olmo": {},
    "olmo2": {},
    "olmo3": {"sliding_window": WINDOW, "layer_types": ["full_attention", "sliding_attention", "full_attention"]},
    "olmo_hybrid": {**_LINEAR, "layer_types": ["full_attention", "linear_attention", "full_attention"]},
    "olmoe": {"num_experts": 4, "num_experts_per_tok": 2},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32, "dropout": 0.0},
    "persimmon": {
        "num_key_value_heads": None,
    },
    "phi": {},
    "phi3": {"partial_rotary_factor": 0.5, "sliding_window": None, "original_max_position_embeddings": TRAINED_LENGTH},
    "phimoe": {"router_jitter_noise": 0.0, "input_jitter_noise": 0.0, **_LOCAL_MOE, "sliding_window": None},
    "qwen2": {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 2},
    "qwen2_5_vl": {
        "text_config": {
            **_WITH_IMAGES,
            "use_sliding_window": True,
            "sliding_window": WINDOW,
            "max_window_layers": 2,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]},
        },
        "vision_config": {
            "depth": 1,
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_heads": 2,
            "out_hidden_size": 32,
            "fullatt_block_indexes": [0],
        },
        "image_token_id": IMAGE_TOKEN,
        "video_token_id": IMAGE_TOKEN + 1,
        "vision_start_token_id": IMAGE_TOKEN + 2,
        "vision_end_token_id": IMAGE_TOKEN + 3,
    },
    "qwen2_moe": {**_MOE, "shared_expert_intermediate_size": 24},
    "qwen3": {"head_dim": 16, "use_sliding_window": False},
    "qwen3_5_moe_text": {
        "initializer_range": 0.1,
        **_MOE,
        **_LINEAR,
        **_MROPE,
        "head_dim": 8,
        "shared_expert_intermediate_size": 24,
        "layer_types": ["full_attention", "linear_attention", "full_attention"],
    },
    "qwen3_5_text": {
        "initializer_range": 0.1,
        **_LINEAR,
        **_MROPE,
        "head_dim": 8,
        "layer_types": ["full_attention", "linear_attention", "full_attention"],
    },
    "qwen3_moe": {**_MOE, "head_dim": 8},
    "qwen3_next": {
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5},
        "initializer_range": 0.1,
        **_MOE,
        **_LINEAR,
        "head_dim": 8,
        "shared_expert_intermediate_size": 24,
        "layer_types": ["full_attention", "linear_attention", "full_attention"],
    },
    "seed_oss": {"head_dim": 8},
    "smollm3": {"no_rope_layer_interval": 2, "sliding_window": None, "use_sliding_window": False},
    "solar_open": {**_ROUTED, "head_dim": 8, "n_shared_experts": 1, "n_group": 1, "topk_group": 1},
    "stablelm": {"partial_rotary_factor": 0.5},
    "starcoder2": {"sliding_window": None},
    "vaultgemma": {"head_dim": 8, "sliding_window": WINDOW, "query_pre_attn_scalar": 8, "attn_logit_softcapping": 5.0},
}


# Families that differ most from one another: the whole matrix runs on these in `make test`, on all in `make test-all`.
REPRESENTATIVES = ("gemma2", "gpt2", "lfm2", "llama", "nemotron", "qwen3_moe")


def families_for_the_matrix(quick: Sequence[str] = REPRESENTATIVES) -> list[Any]:
    """Parameters for a test: every family; families outside the quick set are marked slow."""
    import pytest

    return [pytest.param(family, marks=[] if family in quick else [pytest.mark.slow]) for family in sorted(TINY)]


def tiny_config(model_type: str, **changes: Any) -> Any:
    """A transformers config of the family, with 3 layers and 4 heads; the changes are to its language model."""
    from transformers import AutoConfig

    from surgery.anatomy import FAMILIES

    own, family = TINY[model_type], FAMILIES[model_type]
    if family.text is not None:
        text = _config(family.text_types[0], {**own[family.text], **changes})
        return AutoConfig.for_model(model_type, **{**own, family.text: text.to_dict()})
    return _config(model_type, {**own, **changes})


def _config(model_type: str, own: dict[str, Any]) -> Any:
    from transformers import AutoConfig

    left_out = [name for name in _COMMON if name in own and own[name] is None]
    values = {name: value for name, value in {**_COMMON, **own}.items() if name not in left_out}
    config = AutoConfig.for_model(model_type, **values)
    for name, value in config.to_dict().items():
        if "drop" in name and isinstance(value, float):
            setattr(config, name, 0.0)  # a training step must be repeatable
    return config


def is_bounded(source: Path) -> bool:
    """Whether every layer of a model that SSMax can be performed on has a window or chunks."""
    from surgery.anatomy import read_anatomy
    from surgery.checkpoint import open_checkpoint
    from surgery.operations import OPERATIONS

    layers = read_anatomy(open_checkpoint(source)).layers
    return all(layer.window is not None for layer in layers if OPERATIONS["ssmax"].refusal(layer) is None)


def auto_class(model_type: str) -> Any:
    """The auto class of transformers that makes a model of the family."""
    import transformers

    from surgery.anatomy import FAMILIES

    of_parts = FAMILIES[model_type].text is not None
    return transformers.AutoModelForImageTextToText if of_parts else transformers.AutoModelForCausalLM


def tiny_model(model_type: str, **changes: Any) -> Any:
    """A random float32 model of the family in evaluation mode; the same weights each time."""
    import torch

    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = tiny_config(model_type, **changes)
        model = auto_class(model_type).from_config(config, attn_implementation="eager")
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.dim() == 1:  # norms and biases start as constants, which would hide their order
                    parameter.add_(torch.randn_like(parameter) * (0.1 if "norm" in name else 0.02))
                elif "projection" in name and not parameter.any():  # Gemma 3's, without which no image would matter
                    parameter.normal_(std=0.3)
    return model.float().eval()
