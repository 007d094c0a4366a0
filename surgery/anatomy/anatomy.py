"""Read a model's attention, layer by layer, from config.json and the names and shapes of its tensors."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from surgery.anatomy.config import ConfigValues, Kind
from surgery.anatomy.config_locks import unlock
from surgery.anatomy.families import REFUSED, Family, find_family, probed_family
from surgery.anatomy.rope import Rope, read_ropes, trained_length
from surgery.checkpoint import Checkpoint
from surgery.checkpoint.record import check_format_version
from surgery.errors import CheckpointError, PlanRefusedError

MODEL_TYPE_PREFIX = "surgery_"

# Names of query projections, for a model of an unknown family.
_QUERY_TENSOR = re.compile(r"\.\d+\..*\b(q_proj|qkv_proj|query_key_value|c_attn|Wqkv|wq|q_b_proj)\.weight$")


# Names of the norm of queries in an attention module.
_QUERY_NORMS = ("q_norm", "q_layernorm", "query_layernorm")


@dataclass(frozen=True)
class AttentionLayer:
    """One attention layer.

    Attributes:
        index: number of the layer, from 0.
        kind: kind of attention; ``none`` for a layer of a hybrid without attention.
        window: number of keys in the sliding window, the query's own included, or in a chunk; or None.
        heads, kv_heads, head_dim: sizes.
        query_norm: ``head`` if each head's queries are normalised, ``all`` if all heads' together, or None.
        softcap: soft cap on the scores, or None.
        module: path of the attention module, in the names of its tensors on disk.
        query_tensor: name of the query projection's weight, or None if it was not found.
        scaled: whether the family itself multiplies this layer's queries by a function of the position.
    """

    index: int
    kind: Kind
    window: int | None
    heads: int
    kv_heads: int
    head_dim: int
    query_norm: Literal["head", "all"] | None
    softcap: float | None
    module: str
    query_tensor: str | None
    scaled: bool = False


@dataclass(frozen=True)
class Anatomy:
    """A model's attention and what surrounds it, from headers and config.json alone.

    ``config`` is the family's own config: for a converted checkpoint, without the entries that conversion added.
    ``operations`` are the operations of the conversion, ``source_operations`` the earlier operations of its source.
    ``positions`` is the number of positions that the config allows, ``trained_length`` the length in tokens that the
    source was trained at, which is less after a ``rope`` operation.
    """

    family: Family
    config: Mapping[str, Any]
    layers: tuple[AttentionLayer, ...]
    positions: int
    trained_length: int
    ropes: tuple[Rope, ...]
    tied_embeddings: bool
    dtypes: Mapping[str, int]
    parameters: int
    bytes: int
    shards: int
    operations: tuple[Mapping[str, Any], ...]
    source_operations: tuple[Mapping[str, Any], ...] = ()

    @property
    def heads(self) -> int:
        """Query heads per layer."""
        return self.layers[0].heads


def read_anatomy(checkpoint: Checkpoint, *, family: Family | None = None) -> Anatomy:
    """Read the anatomy of a model folder, converted or not.

    Args:
        checkpoint: the folder's headers.
        family: the row of a probe, in place of a row of the table.

    Raises:
        PlanRefusedError: the family is not supported, or its attention is not causal.
        CheckpointError: config.json lacks a value, or disagrees with the tensors.
    """
    config = unlock(checkpoint.config)
    block = config.pop("surgery", None)
    operations = _operations(block)
    check_format_version(block.get("format_version") if block is not None else None, checkpoint.folder.name)
    earlier = _operations(block.get("base"), what="surgery.base") if operations else ()
    family = family or family_of(checkpoint.config, _finding(checkpoint))
    _check_text_type(family, config)
    own = family.text_config(config)
    values = ConfigValues(family, own)
    if own.get("use_bidirectional_attention"):
        raise PlanRefusedError("config.json: use_bidirectional_attention is true, so the attention is not causal")
    count = values.layers()
    path = _module_path(checkpoint, family, count)
    modules = [path.format(layer=index) for index in range(count)]
    present = [_query_tensor(checkpoint, family, module) is not None for module in modules]
    kinds = values.kinds(count, present if family.hybrid else None)
    heads = values.integer("num_attention_heads")
    kv_heads = values.integer("num_key_value_heads", heads)
    head_dim = values.integer("head_dim", values.integer("hidden_size") // heads)
    if heads % kv_heads:
        raise CheckpointError(f"config.json: {heads} attention heads cannot share {kv_heads} key-value heads")
    positions = values.integer("max_position_embeddings")
    window, softcap = values.window(), values.softcap()
    scaled = values.scaled(count)
    layers = []
    for index, (kind, module) in enumerate(zip(kinds, modules, strict=True)):
        layer = AttentionLayer(
            index=index,
            kind=kind,
            window=window if kind in ("sliding", "chunked") else None,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            query_norm=_query_norm(checkpoint, module, heads, head_dim),
            softcap=softcap,
            module=module,
            query_tensor=_query_tensor(checkpoint, family, module),
            scaled=scaled[index],
        )
        if kind != "none":
            _check_shapes(checkpoint, family, layer)
        layers.append(layer)
    return Anatomy(
        family=family,
        config=config,
        layers=tuple(layers),
        positions=positions,
        trained_length=trained_length((*earlier, *operations), positions),
        ropes=read_ropes(family, own, values.rope_labels(count), head_dim),
        tied_embeddings=_tied(family, config),
        dtypes=Counter(tensor.dtype for tensor in checkpoint.tensors.values()),
        parameters=checkpoint.total_parameters,
        bytes=checkpoint.total_bytes,
        shards=len(checkpoint.shards),
        operations=operations,
        source_operations=earlier,
    )


def family_of(config: Mapping[str, Any], finding: str = "") -> Family:
    """The family of a model, converted or not, from its config.json.

    Args:
        config: as config.json has it.
        finding: facts about the model, for the error.

    Raises:
        PlanRefusedError: the family is not supported.
        CheckpointError: config.json names no type, or its block ``surgery`` is broken.
    """
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        raise CheckpointError("config.json: model_type is missing", hint="Is this a Hugging Face model folder?")
    block = config.get("surgery")
    if not _operations(block):
        return find_family(model_type, finding)
    model_type = model_type.removeprefix(MODEL_TYPE_PREFIX)
    row = block.get("family") if isinstance(block, Mapping) else None
    return find_family(model_type, finding) if row is None else probed_family(model_type, row)


def count_layers(config: Mapping[str, Any], family: Family) -> int:
    """The number of layers of a model of the family.

    Raises:
        CheckpointError: config.json does not have it, or the value is not valid.
    """
    return ConfigValues(family, config).layers()


def _finding(checkpoint: Checkpoint) -> str:
    """The query projections of a model of an unknown family, from the names of its tensors."""
    modules = Counter(match[1] for name in checkpoint.tensors if (match := _QUERY_TENSOR.search(name)))
    if not modules:
        return "its tensors have no query projection of a known name"
    query, count = modules.most_common(1)[0]
    return f"its tensors have {query} in {count} layers"


def _check_text_type(family: Family, config: Mapping[str, Any]) -> None:
    """Refuse an unknown language model in a model of several parts."""
    if family.text is None:
        return
    part = config.get(family.text)
    if part is not None and not isinstance(part, Mapping):
        raise CheckpointError(f"config.json: {family.text} must be an object, not {part!r}")
    found = part.get("model_type", family.text_types[0]) if part is not None else family.text_types[0]
    if found not in family.text_types:
        reason = f" ({REFUSED[found]})" if isinstance(found, str) and found in REFUSED else ""
        raise PlanRefusedError(
            f"the language model in this {family.model_type!r} is {found!r}{reason}; "
            f"only {' or '.join(map(repr, family.text_types))} is supported there"
        )


def _tied(family: Family, config: Mapping[str, Any]) -> bool:
    """Whether the head shares its weights with the embedding; a model of several parts may say so in either config."""
    key = "tie_word_embeddings"
    said = [part[key] for part in (config, family.text_config(config)) if key in part]
    return any(map(bool, said)) if said else bool(family.defaults.get(key))


def _module_path(checkpoint: Checkpoint, family: Family, count: int) -> str:
    """Path of a layer's attention module in the names of tensors on disk; if none fits, the path in the model."""
    for path in family.module_paths:
        modules = (path.format(layer=index) for index in range(count))
        if any(_query_tensor(checkpoint, family, module) is not None for module in modules):
            return path
    return family.module_paths[0]


def _operations(block: Any, what: str = "surgery") -> tuple[Mapping[str, Any], ...]:
    """The operations in the block ``surgery`` of a config, or in its ``base``; empty without the block."""
    if block is None:
        return ()
    operations = block.get("operations", []) if isinstance(block, Mapping) else None
    if not isinstance(operations, list) or not all(isinstance(options, Mapping) for options in operations):
        raise CheckpointError(f"config.json: {what} must be an object with a list of operations")
    return tuple(operations)


def _query_norm(checkpoint: Checkpoint, module: str, heads: int, head_dim: int) -> Literal["head", "all"] | None:
    names = (f"{module}.{name}.weight" for name in _QUERY_NORMS)
    norm = next((checkpoint.tensors[name] for name in names if name in checkpoint.tensors), None)
    if norm is None:
        return None
    return "all" if norm.shape == (heads * head_dim,) and heads > 1 else "head"


def _query_tensor(checkpoint: Checkpoint, family: Family, module: str) -> str | None:
    name = f"{module}.{family.query}.weight"
    return name if name in checkpoint.tensors else None


def _check_shapes(checkpoint: Checkpoint, family: Family, layer: AttentionLayer) -> None:
    """Check that config.json and the shapes of the tensors agree."""
    if "quantization_config" in checkpoint.config:
        return  # packed weights have shapes of their own
    if layer.query_tensor is None:
        raise CheckpointError(
            f"the tensors have no {layer.module}.{family.query}.weight, which config.json needs with its "
            f"{family.model_type!r} and its number of layers",
            hint="config.json and the safetensors files do not belong together.",
        )
    rows = layer.heads * layer.head_dim
    if family.query_rows == "all":
        rows += 2 * layer.kv_heads * layer.head_dim
    elif family.query_rows == "gated":
        rows *= 2
    found = checkpoint.tensors[layer.query_tensor].shape
    axis = family.query_axis
    if found[axis : axis + 1] != (rows,):
        raise CheckpointError(
            f"{layer.query_tensor} has shape {found}, but config.json says {layer.heads} heads of {layer.head_dim}, "
            f"which needs {rows} rows"
        )
