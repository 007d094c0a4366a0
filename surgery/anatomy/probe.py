"""A row for a family that the table does not have, from its model on torch's meta device: no weight is read or made.

What is looked for is what a row says: the attention modules, the projection that makes their queries, heads, windows.
What the equalities of n need beyond that cannot be seen from outside; verifying the conversion shows it.
"""

from __future__ import annotations

import inspect
import re
import types
from collections.abc import Mapping
from typing import Any

from surgery.anatomy.families import Family
from surgery.checkpoint import Checkpoint
from surgery.errors import CheckpointError, PlanRefusedError

MOST_LAYERS = 10_000
# What families call the projection that makes the queries, alone or with keys and values.
QUERIES = ("q_proj", "query", "q", "wq", "Wq", "query_proj")
FUSED = ("qkv_proj", "query_key_value", "c_attn", "Wqkv", "wqkv", "qkv", "W_pack")
# Names in the code of an attention's forward that scale queries by the position or by ln n.
_SCALES = re.compile(r"log|log2|log1p|.*logn.*|.*attn_scale.*|.*attn_temperature.*|.*floor_scale.*")
_READ = (
    "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim", "hidden_size",
    "max_position_embeddings", "sliding_window", "layer_types", "tie_word_embeddings", "attn_logit_softcapping",
)  # fmt: skip


def probe(checkpoint: Checkpoint) -> Family:
    """The row of a checkpoint's family, for this one checkpoint: its config's values are the row's defaults.

    Raises:
        PlanRefusedError: transformers has no such model, or its attention is none that can be operated on.
        CheckpointError: transformers cannot read config.json.
    """
    model_type = str(checkpoint.config.get("model_type"))

    def refuse(why: str) -> PlanRefusedError:
        return PlanRefusedError(f"the family {model_type!r} is not supported, and a probe of its model says: {why}")

    model = _on_meta(model_type, checkpoint, refuse)
    try:
        return _row(checkpoint, model_type, model, refuse)
    except PlanRefusedError:
        raise
    except Exception as error:  # whatever a config or module of a kind that was never seen says to being looked at
        raise refuse(f"{type(error).__name__}: {str(error).splitlines()[0]}") from error


def _row(checkpoint: Checkpoint, model_type: str, model: Any, refuse: Any) -> Family:
    stock: Any = model.config
    if stock.get_text_config() is not stock:
        raise refuse("its language model is a part of a larger one")
    base = model.base_model
    found = {path: module for path, module in base.named_modules() if _asks_for_a_backend(module)}
    if not found:
        raise refuse("none of its modules asks transformers for an attention backend")
    paths = {re.sub(r"(?<=\.)\d+(?=\.)", "{layer}", path) for path in found}
    attention = min(paths)
    if len(paths) > 1 or attention.count("{layer}") != 1:
        raise refuse(f"it has attention of several kinds: {', '.join(sorted(paths))}")
    counted_at = attention.split("{layer}")[0].rstrip(".").rpartition(".")[0]
    _check_code(model, base.get_submodule(counted_at), found, refuse)
    query, rows, axis = _query(stock, found, refuse)
    windows = {getattr(module, "sliding_window", None) for module in found.values()}
    labels = getattr(stock, "layer_types", None)  # full layers may carry the window as well
    slides = "sliding_attention" in (labels or ())
    if len(windows - {None}) > 1 or (slides and windows == {None}) or (labels is None and len(windows) > 1):
        raise refuse("the windows of its layers could not be found")
    sinks = any("sink" in name for module in found.values() for name, _ in module.named_parameters(recurse=False))
    return Family(
        model_type=model_type,
        name=model_type,
        architecture=type(model).__name__,
        config_class=type(stock).__name__,
        base_model=type(base).__name__,
        base_prefix=f"{model.base_model_prefix}.",
        disk_prefixes=_disk_prefixes(checkpoint, f"{attention}.{query}.weight", f"{model.base_model_prefix}."),
        counted_at=counted_at,
        attention=attention,
        relay=True,  # right whether or not its layers hand keywords on
        query=query,
        query_rows=rows,
        query_axis=axis,
        softcap="attn_logit_softcapping" if getattr(stock, "attn_logit_softcapping", None) else None,
        window="sliding_window" if windows - {None} else None,
        sliding="none" if windows == {None} else "every" if labels is None else "layer_types",
        sinks=sinks,
        hybrid=len(found) < stock.num_hidden_layers,
        sdpa=bool(model._supports_sdpa),
        rope="none",
        keys={name: stock.attribute_map[name] for name in _READ if name in stock.attribute_map},
        defaults={name: value for name in _READ if (value := getattr(stock, name, None)) is not None},
        notes=(
            f"unverified family: {model_type!r} is not in the table; a probe of its model found {len(found)} attention "
            f"modules ({attention}) with {stock.num_attention_heads} heads, whose queries {query} makes. Nothing was "
            "run: `surgery verify --against` the source is the proof",
        ),
        unverified=True,
    )


def _disk_prefixes(checkpoint: Checkpoint, tensor: str, own: str) -> tuple[str, ...]:
    """What stands before the path of the queries' tensor on disk, where transformers renames it."""
    pattern = re.compile(rf"(.*){re.escape(tensor).replace(re.escape('{layer}'), '[0-9]+')}")
    found = {match[1] for name in checkpoint.tensors if (match := pattern.fullmatch(name))}
    return tuple(sorted(found - {own}))


def _on_meta(model_type: str, checkpoint: Checkpoint, refuse: Any) -> Any:
    import torch
    import transformers
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    if model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise refuse(f"transformers {transformers.__version__} has no causal language model of this type")
    layers = checkpoint.config.get("num_hidden_layers")
    if isinstance(layers, int) and layers > MOST_LAYERS:
        raise CheckpointError(f"config.json: num_hidden_layers is {layers}")
    try:
        stock = CONFIG_MAPPING[model_type].from_pretrained(checkpoint.folder, local_files_only=True)
        if stock.is_encoder_decoder:
            raise refuse("it is an encoder-decoder")
        with torch.device("meta"):
            model = transformers.AutoModelForCausalLM.from_config(stock, trust_remote_code=False)
    except PlanRefusedError:
        raise
    except Exception as error:  # whatever a family's own code says of a config that it cannot use
        said = f"{type(error).__name__}: {error}"
        raise CheckpointError(f"config.json: transformers makes no model of it: {said}") from error
    own: Any = type(model).config_class
    if own.model_type != model_type or not isinstance(stock, own):
        raise refuse(f"transformers runs it with the classes of {own.model_type!r}")
    for stock_class in (type(model), type(model.base_model), own):
        if getattr(transformers, stock_class.__name__, None) is not stock_class:
            raise refuse(f"{stock_class.__name__} is no public class of transformers")
    return model


def _asks_for_a_backend(module: Any) -> bool:
    return "ALL_ATTENTION_FUNCTIONS" in _names_in_forward(module)


def _names_in_forward(module: Any) -> tuple[str, ...]:
    """The names that the code of a module's ``forward`` looks up, below whatever decorates it."""
    forward = inspect.unwrap(type(module).forward)
    return forward.__code__.co_names if isinstance(forward, types.FunctionType) else ()


def _check_code(model: Any, counted: Any, found: Mapping[str, Any], refuse: Any) -> None:
    """The code that runs must let n through, and must not scale the queries by the position itself."""
    from surgery.runtime import CACHE_NAMES

    if not set(CACHE_NAMES) & inspect.signature(type(model).forward).parameters.keys():
        raise refuse("it keeps its state in a cache of its own")
    if all(one.kind is not one.VAR_KEYWORD for one in inspect.signature(type(counted).forward).parameters.values()):
        raise refuse(f"{type(counted).__name__}.forward takes no further keywords, so n cannot be handed down")
    for module in found.values():
        if not getattr(module, "is_causal", True):
            raise refuse(f"{type(module).__name__} is not causal")
        scaling = [name for name in _names_in_forward(module) if _SCALES.fullmatch(name)]
        if scaling:
            raise refuse(f"{type(module).__name__} scales its queries by the position already ({scaling[0]})")


def _query(stock: Any, found: Mapping[str, Any], refuse: Any) -> tuple[str, Any, Any]:
    """Name of the projection that makes the queries, what its rows are, and the axis that they lie on."""
    seen = set()
    for module in found.values():
        held = [name for name, _ in module.named_children()]
        latent = [name for name in held if re.match(r"(q|kv)_(a|b)_|.*compress|kv_down|q_down", name)]
        if latent:
            raise refuse(f"{type(module).__name__} has latent attention (MLA): {latent[0]}")
        names = [name for name in (*QUERIES, *FUSED) if name in held and hasattr(getattr(module, name), "weight")]
        if not names:
            raise refuse(f"none of what {type(module).__name__} holds is known to make queries: {', '.join(held)}")
        projection = getattr(module, names[0])
        axis = 1 if type(projection).__name__ == "Conv1D" else 0
        heads = stock.num_attention_heads
        kv_heads = getattr(stock, "num_key_value_heads", None) or heads
        size = getattr(stock, "head_dim", None) or stock.hidden_size // heads
        made = projection.weight.shape[axis]
        kinds = {heads * size: "queries", 2 * heads * size: "gated"}
        if names[0] in FUSED:
            kinds = {(heads + 2 * kv_heads) * size: "all"}
        if made not in kinds:
            raise refuse(f"{names[0]} makes {made} rows, which is not for {heads} heads of {size}")
        seen.add((names[0], kinds[made], axis))
    if len(seen) > 1:
        raise refuse("its layers are of several kinds")
    return seen.pop()
