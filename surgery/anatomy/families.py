"""The families: one row each. Adding a family is adding a row, and the test matrix picks it up."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

from surgery.errors import PlanRefusedError


@dataclass(frozen=True)
class Family:
    """Where a family keeps its attention, in the names of transformers' classes and of tensors.

    Attributes:
        model_type: as in config.json.
        name: stem of the class names: ``<name>ForCausalLM`` is transformers' class.
        config_class: name of transformers' config class.
        base_model: name of transformers' base model class.
        base_prefix: prefix of the base model's tensors.
        attention: path of a layer's attention module below the base model.
        query: projection in that module that makes the queries.
        query_rows: what its rows hold: the queries alone, or the queries, keys and values together.
        softcap: config key of the soft cap on attention scores.
        window: config key of the sliding window.
        window_gate: config key that must be true for the window to count.
        sliding: which layers slide: none, every layer once there is a window, or those that ``layer_types`` lists.
        full_every: where ``layer_types`` is absent, every so-manieth layer is full (the family's own default).
        full_every_key: config key that overrides ``full_every``.
        sliding_from_key: where ``layer_types`` is absent, config key of the first layer that slides.
        sdpa: whether transformers allows the sdpa backend.
        rope: one set of rotary parameters for all layers, or one for each kind of layer, or no rotary positions.
        rope_types: kinds of RoPE that transformers' class of the family runs.
        defaults: config values that the family assumes where config.json is silent.
    """

    model_type: str
    name: str
    config_class: str
    base_model: str
    base_prefix: str = "model."
    attention: str = "layers.{layer}.self_attn"
    query: str = "q_proj"
    query_rows: Literal["queries", "all"] = "queries"
    softcap: str | None = None
    window: str | None = None
    window_gate: str | None = None
    sliding: Literal["none", "every", "layer_types"] = "none"
    full_every: int | None = None
    full_every_key: str | None = None
    sliding_from_key: str | None = None
    sdpa: bool = True
    rope: Literal["shared", "by_layer_type", "none"] = "shared"
    rope_types: tuple[str, ...] = ("default", "linear", "yarn")
    defaults: MappingProxyType[str, Any] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def architecture(self) -> str:
        """Name of transformers' causal language model class."""
        return f"{self.name}ForCausalLM"


def _row(model_type: str, name: str, *, defaults: dict[str, Any] | None = None, **features: Any) -> Family:
    features.setdefault("config_class", f"{name}Config")
    features.setdefault("base_model", f"{name}Model")
    return Family(model_type, name, defaults=MappingProxyType(defaults or {}), **features)


_QWEN_WINDOW: dict[str, Any] = {"window": "sliding_window", "window_gate": "use_sliding_window"}
_QWEN_LAYERS: dict[str, Any] = {**_QWEN_WINDOW, "sliding": "layer_types", "sliding_from_key": "max_window_layers"}
_QWEN_DEFAULTS = {"max_position_embeddings": 32768, "sliding_window": 4096, "max_window_layers": 28}

FAMILIES: MappingProxyType[str, Family] = MappingProxyType(
    {
        family.model_type: family
        for family in (
            _row("llama", "Llama", defaults={"max_position_embeddings": 2048}),
            _row(
                "mistral",
                "Mistral",
                window="sliding_window",
                sliding="every",
                defaults={"max_position_embeddings": 131072, "num_key_value_heads": 8, "sliding_window": 4096},
            ),
            _row("qwen2", "Qwen2", **_QWEN_LAYERS, defaults={**_QWEN_DEFAULTS, "num_key_value_heads": 32}),
            _row(
                "qwen3",
                "Qwen3",
                **_QWEN_LAYERS,
                defaults={**_QWEN_DEFAULTS, "num_key_value_heads": 32, "head_dim": 128},
            ),
            _row(
                "qwen3_moe",
                "Qwen3Moe",
                **_QWEN_WINDOW,
                sliding="every",
                defaults={**_QWEN_DEFAULTS, "num_key_value_heads": 4},
            ),
            _row(
                "gemma2",
                "Gemma2",
                softcap="attn_logit_softcapping",
                window="sliding_window",
                sliding="layer_types",
                full_every=2,
                sdpa=False,
                defaults={
                    "max_position_embeddings": 8192,
                    "num_key_value_heads": 4,
                    "head_dim": 256,
                    "attn_logit_softcapping": 50.0,
                    "sliding_window": 4096,
                    "tie_word_embeddings": True,
                },
            ),
            _row(
                "gemma3_text",
                "Gemma3",
                config_class="Gemma3TextConfig",
                base_model="Gemma3TextModel",
                window="sliding_window",
                sliding="layer_types",
                full_every=6,
                full_every_key="sliding_window_pattern",
                rope="by_layer_type",
                defaults={
                    "rope_theta": 1_000_000.0,
                    "max_position_embeddings": 131072,
                    "num_key_value_heads": 4,
                    "head_dim": 256,
                    "sliding_window": 4096,
                    "tie_word_embeddings": True,
                },
            ),
            _row(
                "phi3",
                "Phi3",
                query="qkv_proj",
                query_rows="all",
                window="sliding_window",
                sliding="every",
                # Its config class takes yarn for longrope and refuses the rest.
                rope_types=("default",),
                defaults={"max_position_embeddings": 4096},
            ),
            _row("olmo2", "Olmo2", defaults={"max_position_embeddings": 2048}),
            _row("granite", "Granite", defaults={"max_position_embeddings": 2048}),
            _row(
                "gpt_neox",
                "GPTNeoX",
                base_prefix="gpt_neox.",
                attention="layers.{layer}.attention",
                query="query_key_value",
                query_rows="all",
                defaults={"max_position_embeddings": 2048, "rotary_pct": 0.25},
            ),
            _row(
                "cohere",
                "Cohere",
                defaults={"max_position_embeddings": 8192, "rope_theta": 500_000.0, "tie_word_embeddings": True},
            ),
        )
    }
)

# Families that are refused with the reason, so that nobody has to guess.
REFUSED: MappingProxyType[str, str] = MappingProxyType(
    {
        "qwen": "Qwen 1 already scales its attention by ln n (use_logn_attn)",
        "llama4": "Llama 4 already scales the queries of its long-range layers by the position",
        "llama4_text": "Llama 4 already scales the queries of its long-range layers by the position",
        "ministral3": "Ministral 3 already scales its queries by the position",
        "deepseek_v2": "latent attention (MLA) is not supported",
        "deepseek_v3": "latent attention (MLA) is not supported",
        "mamba": "a state-space model has no attention",
        "mamba2": "a state-space model has no attention",
        "bert": "an encoder is not a causal language model",
        "t5": "an encoder-decoder is not a causal language model",
        "bart": "an encoder-decoder is not a causal language model",
    }
)


def find_family(model_type: str) -> Family:
    """The row of a model type.

    Raises:
        PlanRefusedError: there is none, with the reason where one is known, else the nearest family.
    """
    if model_type in FAMILIES:
        return FAMILIES[model_type]
    if model_type in REFUSED:
        raise PlanRefusedError(f"the family {model_type!r} is refused: {REFUSED[model_type]}")
    from rapidfuzz import process

    nearest = process.extractOne(model_type, list(FAMILIES), score_cutoff=60)
    nearby = f"The nearest supported family is {nearest[0]!r}. " if nearest else ""
    raise PlanRefusedError(
        f"the family {model_type!r} is not supported", hint=f"{nearby}Supported: {', '.join(sorted(FAMILIES))}."
    )
