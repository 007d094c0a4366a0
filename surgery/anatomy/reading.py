"""Read a model's attention, layer by layer, from config.json and the names and shapes of its tensors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from surgery.anatomy.families import Family, find_family
from surgery.anatomy.locks import unlock
from surgery.anatomy.rope import Rope, read_ropes, trained_length
from surgery.checkpoint import Checkpoint
from surgery.errors import CheckpointError, PlanRefusedError

MODEL_TYPE_PREFIX = "surgery_"

Kind = Literal["full", "sliding", "linear", "latent", "chunked"]
_LABELS: dict[Kind, str] = {
    "full": "full_attention",
    "sliding": "sliding_attention",
    "linear": "linear_attention",
    "chunked": "chunked_attention",
}


@dataclass(frozen=True)
class AttentionLayer:
    """One attention layer.

    Attributes:
        index: number of the layer, from 0.
        kind: which keys a query sees.
        window: number of keys in the sliding window, the query's own included, or None.
        heads, kv_heads, head_dim: sizes.
        query_norm: ``head`` if each head's queries are normalised, ``all`` if all heads' together, or None.
        softcap: soft cap on the scores, or None.
        module: path of the attention module in the causal language model.
        query_tensor: name of the weight that makes the queries, or None where it could not be found.
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


@dataclass(frozen=True)
class Anatomy:
    """A model's attention and what surrounds it, from headers and config.json alone.

    ``config`` is the family's own config: for a checkpoint that was operated on, without what the tool added.
    ``operations`` are those that made it of its source, ``source_operations`` those that its source had before.
    ``positions`` is how many the config allows, ``trained_length`` how many the source was trained with: less after a
    ``rope`` operation.
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


def read_anatomy(checkpoint: Checkpoint) -> Anatomy:
    """Read the anatomy of a model folder, converted or not.

    Raises:
        PlanRefusedError: the family is not supported, or its attention is not causal.
        CheckpointError: config.json lacks what it must say, or disagrees with the tensors.
    """
    config = unlock(checkpoint.config)
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        raise CheckpointError("config.json: model_type is missing", hint="Is this a Hugging Face model folder?")
    block = config.pop("surgery", None)
    operations = _operations(block)
    earlier = _operations(block.get("base"), what="surgery.base") if operations else ()
    if operations:
        model_type = model_type.removeprefix(MODEL_TYPE_PREFIX)
    family = find_family(model_type)
    reader = _Reader(family, config)
    if config.get("use_bidirectional_attention"):
        raise PlanRefusedError("config.json: use_bidirectional_attention is on, so the attention is not causal")
    count = reader.integer("num_hidden_layers")
    kinds = reader.kinds(count)
    heads = reader.integer("num_attention_heads")
    kv_heads = reader.integer("num_key_value_heads", heads)
    head_dim = reader.integer("head_dim", reader.integer("hidden_size") // heads)
    if heads % kv_heads:
        raise CheckpointError(f"config.json: {heads} attention heads cannot share {kv_heads} key-value heads")
    positions = reader.integer("max_position_embeddings")
    window, softcap = reader.window(), reader.softcap()
    layers = []
    for index, kind in enumerate(kinds):
        module = family.base_prefix + family.attention.format(layer=index)
        layer = AttentionLayer(
            index=index,
            kind=kind,
            window=window if kind == "sliding" else None,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            query_norm=_query_norm(checkpoint, module, heads, head_dim),
            softcap=softcap,
            module=module,
            query_tensor=_query_tensor(checkpoint, family, module),
        )
        _check_shapes(checkpoint, family, layer)
        layers.append(layer)
    return Anatomy(
        family=family,
        config=config,
        layers=tuple(layers),
        positions=positions,
        trained_length=trained_length((*earlier, *operations), positions),
        ropes=read_ropes(family, config, [_LABELS[label] for label in reader.labels(count)], head_dim),
        tied_embeddings=bool(reader.value("tie_word_embeddings") or False),
        dtypes=Counter(tensor.dtype for tensor in checkpoint.tensors.values()),
        parameters=checkpoint.total_parameters,
        bytes=checkpoint.total_bytes,
        shards=len(checkpoint.shards),
        operations=operations,
        source_operations=earlier,
    )


def _operations(block: Any, what: str = "surgery") -> tuple[Mapping[str, Any], ...]:
    """What the block ``surgery`` of a config, or ``base`` in it, says was done; nothing where there is none."""
    if block is None:
        return ()
    operations = block.get("operations", []) if isinstance(block, Mapping) else None
    if not isinstance(operations, list) or not all(isinstance(options, Mapping) for options in operations):
        raise CheckpointError(f"config.json: {what} must be an object with a list of operations")
    return tuple(operations)


class _Reader:
    """config.json with the family's defaults, and errors that name the key."""

    def __init__(self, family: Family, config: Mapping[str, Any]) -> None:
        self.family = family
        self.config = config

    def value(self, key: str) -> Any:
        """The key's value; null counts as absent only where the family itself replaces it."""
        return self.config[key] if key in self.config else self.family.defaults.get(key)

    def integer(self, key: str, otherwise: int | None = None, *, least: int = 1) -> int:
        value = self.value(key)
        if value is None:
            value = otherwise
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value < 2**31:
            raise CheckpointError(f"config.json: {key} must be a whole number, at least {least}, not {value!r}")
        return value

    def softcap(self) -> float | None:
        """The soft cap on attention scores, or None."""
        key = self.family.softcap
        value = self.value(key) if key else None
        if value is not None and (not isinstance(value, int | float) or isinstance(value, bool) or not value > 0):
            raise CheckpointError(f"config.json: {key} must be a positive number, not {value!r}")
        return value

    def window(self) -> int | None:
        """The sliding window, unless it is switched off or not shorter than the trained length."""
        family = self.family
        if family.window is None or (family.window_gate and not self.value(family.window_gate)):
            return None
        return None if self.value(family.window) is None else self.integer(family.window)

    def kinds(self, count: int) -> list[Kind]:
        """Full or sliding, for each of ``count`` layers."""
        if count > 10_000:
            raise CheckpointError(f"config.json: num_hidden_layers is {count}")
        window = self.window()
        if window is None or window >= self.integer("max_position_embeddings"):
            return ["full"] * count
        if self.family.sliding == "every":
            return ["sliding"] * count
        return self.labels(count)

    def labels(self, count: int) -> list[Kind]:
        """The kind of each layer as the config names it, whether or not there is a window that makes a difference."""
        if self.family.sliding != "layer_types":
            return ["full"] * count
        listed = self.config.get("layer_types")
        if listed is None:
            return [self._default_kind(index) for index in range(count)]
        names: dict[str, Kind] = {label: kind for kind, label in _LABELS.items()}
        if not isinstance(listed, list) or len(listed) != count or not all(name in list(names) for name in listed):
            raise CheckpointError(
                f"config.json: layer_types must list {count} layers, each one of {', '.join(names)}, not {listed!r}"
            )
        return [names[name] for name in listed]

    def _default_kind(self, index: int) -> Kind:
        family = self.family
        if family.sliding_from_key is not None:
            return "sliding" if index >= self.integer(family.sliding_from_key, least=0) else "full"
        every = (
            self.config.get(family.full_every_key, family.full_every) if family.full_every_key else family.full_every
        )
        if not isinstance(every, int) or every < 1:
            raise CheckpointError(
                f"config.json: {family.full_every_key} must be a positive whole number, not {every!r}"
            )
        return "sliding" if (index + 1) % every else "full"


def _query_norm(checkpoint: Checkpoint, module: str, heads: int, head_dim: int) -> Literal["head", "all"] | None:
    norm = checkpoint.tensors.get(f"{module}.q_norm.weight")
    if norm is None:
        return None
    return "all" if norm.shape == (heads * head_dim,) and heads > 1 else "head"


def _query_tensor(checkpoint: Checkpoint, family: Family, module: str) -> str | None:
    name = f"{module}.{family.query}.weight"
    return name if name in checkpoint.tensors else None


def _check_shapes(checkpoint: Checkpoint, family: Family, layer: AttentionLayer) -> None:
    """config.json and the tensors must tell the same story, or the plan would be for another model."""
    if "quantization_config" in checkpoint.config:
        return  # packed weights have shapes of their own
    if layer.query_tensor is None:
        raise CheckpointError(
            f"the tensors hold no {layer.module}.{family.query}.weight, which config.json's "
            f"{family.model_type!r} with its number of layers needs",
            hint="config.json and the safetensors files do not belong together.",
        )
    rows = layer.heads * layer.head_dim
    if family.query_rows == "all":
        rows += 2 * layer.kv_heads * layer.head_dim
    found = checkpoint.tensors[layer.query_tensor].shape
    if found[:1] != (rows,):
        raise CheckpointError(
            f"{layer.query_tensor} has shape {found}, but config.json says {layer.heads} heads of {layer.head_dim}, "
            f"which needs {rows} rows"
        )
