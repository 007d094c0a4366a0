"""The families: one row each. Adding a family is adding a row, and the test matrix picks it up."""

from __future__ import annotations

from dataclasses import dataclass

from rapidfuzz import process

from surgery.errors import PlanRefusedError


@dataclass(frozen=True)
class Family:
    """Where a family keeps its attention, in the names of transformers' classes and tensors.

    Attributes:
        model_type: as in config.json.
        name: stem of the class names, so that ``<name>Config`` and ``<name>ForCausalLM`` are transformers' classes.
        config_class: name of the config class.
        base_prefix: prefix of the base model's tensors, for example ``model.``.
        attention: path of a layer's attention module below the base model.
        query: name of the projection that makes the queries; fused with keys and values in some families.
        fused: whether that projection also makes keys and values.
        query_norm: whether queries and keys are normalised, and over what: each head, or all heads together.
        softcap: config key of the soft cap on attention scores, if the family has one.
        heads, kv_heads, head_dim, layers, trained_length: config keys.
        sliding: how the config says which layers slide: ``none``, ``layer_types`` (a list, or derived by the
            family's rule), ``always`` (every layer if ``sliding_window`` is set).
        pattern: the family's own default for the list: every n-th layer is full, starting as given.
        experts: whether feed-forward layers are mixtures of experts (their tensors are renamed on load).
        sdpa: whether transformers allows the sdpa backend.
    """

    model_type: str
    name: str
    config_class: str
    base_prefix: str = "model."
    attention: str = "layers.{layer}.self_attn"
    query: str = "q_proj"
    fused: bool = False
    query_norm: str | None = None
    softcap: str | None = None
    heads: str = "num_attention_heads"
    kv_heads: str = "num_key_value_heads"
    head_dim: str = "head_dim"
    layers: str = "num_hidden_layers"
    trained_length: str = "max_position_embeddings"
    sliding: str = "none"
    experts: bool = False
    sdpa: bool = True


def _row(model_type: str, name: str, *, config_class: str | None = None, **features: object) -> Family:
    return Family(model_type, name, config_class or f"{name}Config", **features)  # type: ignore[arg-type]


FAMILIES: dict[str, Family] = {family.model_type: family for family in (_row("llama", "Llama"),)}


def find_family(model_type: str) -> Family:
    """The row of a model type.

    Raises:
        PlanRefusedError: there is none; the nearest one is named.
    """
    if model_type in FAMILIES:
        return FAMILIES[model_type]
    nearest = process.extractOne(model_type, list(FAMILIES), score_cutoff=60)
    hint = f"The nearest family is {nearest[0]!r}." if nearest else None
    raise PlanRefusedError(f"the family {model_type!r} is not supported; supported: {', '.join(FAMILIES)}", hint=hint)
