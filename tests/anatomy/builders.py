"""Model folders with a config, the query projections, the output projection, and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from surgery.anatomy import FAMILIES
from surgery.checkpoint import NewTensor, write_json, write_safetensors

LAYERS = 4
SIZES: dict[str, Any] = {
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 32,
    "hidden_size": 64,
    "max_position_embeddings": 8192,
}

# Sizes that the default number of key-value heads divides, and layers where the family has no rule for them.
SIZES_OF: dict[str, dict[str, Any]] = {
    "lfm3": {"layer_types": ["full_attention"] * LAYERS},
    "mimo_v2_flash": {"layer_types": ["full_attention"] * LAYERS},
    "bitnet": {"num_attention_heads": 20, "hidden_size": 80},
    "helium": {"num_attention_heads": 20, "hidden_size": 80},
}


def bare_config(model_type: str, /, **changes: Any) -> dict[str, Any]:
    """As config.json; a change, which is to the language model's, to ``...`` leaves the key out."""
    family = FAMILIES[model_type]
    inner = model_type if family.text is None else family.text_types[0]
    values = {name: value for name, value in {"model_type": inner, **SIZES, **changes}.items() if value is not ...}
    return values if family.text is None else {"model_type": model_type, family.text: values}


def bare_source(folder: Path, model_type: str = "llama", **changes: Any) -> Path:
    """A folder of a few kilobytes, written without torch."""
    config = bare_config(model_type, **changes)
    family = FAMILIES[model_type]
    values = {**family.defaults, **family.text_config(config)}
    heads = values["num_attention_heads"]
    head_dim = values.get("head_dim") or values["hidden_size"] // heads
    rows = heads * head_dim
    if family.query_rows == "all":
        rows += 2 * (values.get("num_key_value_heads") or heads) * head_dim
    elif family.query_rows == "gated":
        rows *= 2
    shape = (1, rows) if family.query_axis else (rows, 1)
    tensor = NewTensor("F32", shape, bytes(4 * rows))
    folder.mkdir(parents=True)
    write_json(folder / "config.json", config)
    layers = range(values["num_hidden_layers"])
    stem = family.base_prefix + family.attention
    names = [f"{stem.format(layer=layer)}.{family.query}.weight" for layer in layers]
    names.append(f"{family.head}.weight")
    write_safetensors(folder / "model.safetensors", dict.fromkeys(names, tensor), {"format": "pt"})
    return folder
