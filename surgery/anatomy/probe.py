"""A row for a family that is not in the table, found on its model on torch's meta device, without weights.

The probe finds the fields of a row: attention modules, the projection that computes their queries, heads and windows.
It cannot see whether n will be the same in every presentation; `surgery verify` checks that on the converted model.
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
# Names of the projection that computes the queries, alone or together with keys and values.
QUERIES = ("q_proj", "query", "q", "wq", "Wq", "query_proj")
FUSED = ("qkv_proj", "query_key_value", "c_attn", "Wqkv", "wqkv", "qkv", "W_pack")
# Names of the projection that reads the outputs of the heads.
OUTPUTS = ("o_proj", "out_proj", "dense", "c_proj", "wo", "Wo", "output_proj")
# Names in the code of an attention module that scale queries by the position or by ln n.
_SCALES = re.compile(r"log|log2|log1p|.*logn.*|.*attn_scale.*|.*attn_temperature.*|.*floor_scale.*")
_READ = (
    "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim", "hidden_size",
    "max_position_embeddings", "sliding_window", "layer_types", "tie_word_embeddings", "attn_logit_softcapping",
)  # fmt: skip


def probe(checkpoint: Checkpoint) -> Family:
    """A row for the family of a checkpoint, valid for this checkpoint only: its defaults come from its config.

    Raises:
        PlanRefusedError: transformers has no such model, or the probe does not know its kind of attention.
        CheckpointError: transformers cannot read config.json.
    """
    model_type = str(checkpoint.config.get("model_type"))

    def refuse(why: str) -> PlanRefusedError:
        return PlanRefusedError(f"the family {model_type!r} is not supported, and a probe of its model failed: {why}")

    model = _on_meta(model_type, checkpoint, refuse)
    try:
        return _row(checkpoint, model_type, model, refuse)
    except PlanRefusedError:
        raise
    except Exception as error:  # an unknown config or module can raise anything
        raise refuse(f"{type(error).__name__}: {str(error).splitlines()[0]}") from error


def _row(checkpoint: Checkpoint, model_type: str, model: Any, refuse: Any) -> Family:
    stock: Any = model.config
    if stock.get_text_config() is not stock:
        raise refuse("the language model is a part of a larger model")
    base = model.base_model
    found = {path: module for path, module in base.named_modules() if _asks_for_a_backend(module)}
    if not found:
        raise refuse("no module uses the attention backends of transformers")
    paths = {re.sub(r"(?<=\.)\d+(?=\.)", "{layer}", path) for path in found}
    attention = min(paths)
    if len(paths) > 1 or attention.count("{layer}") != 1:
        raise refuse(f"the model has several kinds of attention: {', '.join(sorted(paths))}")
    counted_at = attention.split("{layer}")[0].rstrip(".").rpartition(".")[0]
    _check_code(model, base.get_submodule(counted_at), found, refuse)
    query, rows, axis = _query(stock, found, refuse)
    windows = {getattr(module, "sliding_window", None) for module in found.values()}
    labels = getattr(stock, "layer_types", None)  # full layers may also have the attribute
    slides = "sliding_attention" in (labels or ())
    if len(windows - {None}) > 1 or (slides and windows == {None}) or (labels is None and len(windows) > 1):
        raise refuse("the sliding windows of the layers were not found")
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
        relay=True,  # works whether or not the layers pass keywords on
        query=query,
        query_rows=rows,
        query_axis=axis,
        output=_output(found),
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
            f"modules ({attention}) with {stock.num_attention_heads} heads and the query projection {query}. No model "
            "was run: check the result with `surgery verify --against` the source",
        ),
        unverified=True,
    )


def _disk_prefixes(checkpoint: Checkpoint, tensor: str, own: str) -> tuple[str, ...]:
    """Prefixes of the query projection's name on disk, where transformers renames it on loading."""
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
            raise refuse("the model is an encoder-decoder")
        with torch.device("meta"):
            model = transformers.AutoModelForCausalLM.from_config(stock, trust_remote_code=False)
    except PlanRefusedError:
        raise
    except Exception as error:  # a family's own code can raise anything
        said = f"{type(error).__name__}: {error}"
        raise CheckpointError(f"config.json: transformers could not build the model: {said}") from error
    own: Any = type(model).config_class
    if own.model_type != model_type or not isinstance(stock, own):
        raise refuse(f"transformers runs it with the classes of {own.model_type!r}")
    for stock_class in (type(model), type(model.base_model), own):
        if getattr(transformers, stock_class.__name__, None) is not stock_class:
            raise refuse(f"{stock_class.__name__} is not a public class of transformers")
    return model


def _asks_for_a_backend(module: Any) -> bool:
    return "ALL_ATTENTION_FUNCTIONS" in _names_in_forward(module)


def _names_in_forward(module: Any) -> tuple[str, ...]:
    """The names that the code of a module's ``forward`` looks up, without its decorators."""
    forward = inspect.unwrap(type(module).forward)
    return forward.__code__.co_names if isinstance(forward, types.FunctionType) else ()


def _check_code(model: Any, counted: Any, found: Mapping[str, Any], refuse: Any) -> None:
    """Check that the model's code passes n to the attention, and does not itself scale the queries by the position."""
    from surgery.runtime import CACHE_NAMES

    if not set(CACHE_NAMES) & inspect.signature(type(model).forward).parameters.keys():
        raise refuse("the model uses its own kind of cache")
    if all(one.kind is not one.VAR_KEYWORD for one in inspect.signature(type(counted).forward).parameters.values()):
        raise refuse(f"{type(counted).__name__}.forward takes no extra keywords, so n cannot be passed to the layers")
    for module in found.values():
        if not getattr(module, "is_causal", True):
            raise refuse(f"{type(module).__name__} is not causal")
        scaling = [name for name in _names_in_forward(module) if _SCALES.fullmatch(name)]
        if scaling:
            raise refuse(f"{type(module).__name__} already scales its queries by the position ({scaling[0]})")


def _output(found: Mapping[str, Any]) -> str:
    """The field ``output`` of the row; a merge compares logits, so a wrong name cannot do harm."""
    seen = {next((name for name in OUTPUTS if hasattr(module, name)), "") for module in found.values()}
    return seen.pop() if len(seen) == 1 else ""


def _query(stock: Any, found: Mapping[str, Any], refuse: Any) -> tuple[str, Any, Any]:
    """The fields ``query``, ``query_rows`` and ``query_axis`` of the row."""
    seen = set()
    for module in found.values():
        held = [name for name, _ in module.named_children()]
        latent = [name for name in held if re.match(r"(q|kv)_(a|b)_|.*compress|kv_down|q_down", name)]
        if latent:
            raise refuse(f"{type(module).__name__} has latent attention (MLA): {latent[0]}")
        names = [name for name in (*QUERIES, *FUSED) if name in held and hasattr(getattr(module, name), "weight")]
        if not names:
            raise refuse(f"{type(module).__name__} has no query projection of a known name: {', '.join(held)}")
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
            raise refuse(f"{names[0]} has {made} output rows, which do not match {heads} heads of size {size}")
        seen.add((names[0], kinds[made], axis))
    if len(seen) > 1:
        raise refuse("the layers have different query projections")
    return seen.pop()
