"""Read a model's attention, layer by layer, from config.json and the names and shapes of its tensors."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from surgery.anatomy.families import REFUSED, Family, find_family, probed_family
from surgery.anatomy.locks import unlock
from surgery.anatomy.rope import Rope, read_ropes, trained_length
from surgery.checkpoint import Checkpoint
from surgery.checkpoint.record import check_format_version
from surgery.errors import CheckpointError, PlanRefusedError

MODEL_TYPE_PREFIX = "surgery_"

Kind = Literal["full", "sliding", "linear", "latent", "chunked", "none"]
# What ``layer_types`` calls a layer. In a hybrid the tensors tell which layers have attention.
_LABELS: dict[Kind, str] = {
    "full": "full_attention",
    "sliding": "sliding_attention",
    "linear": "linear_attention",
    "chunked": "chunked_attention",
}
# Names of projections that make queries, where nothing else is known of a model.
_QUERY_TENSOR = re.compile(r"\.\d+\..*\b(q_proj|qkv_proj|query_key_value|c_attn|Wqkv|wq|q_b_proj)\.weight$")


@dataclass(frozen=True)
class AttentionLayer:
    """One attention layer.

    Attributes:
        index: number of the layer, from 0.
        kind: which keys a query sees; ``none`` for a layer of a hybrid that has no attention.
        window: number of keys in the sliding window, the query's own included, or in a chunk; or None.
        heads, kv_heads, head_dim: sizes.
        query_norm: ``head`` if each head's queries are normalised, ``all`` if all heads' together, or None.
        softcap: soft cap on the scores, or None.
        module: path of the attention module, as the names of its tensors on disk have it.
        query_tensor: name of the weight that makes the queries, or None where it could not be found.
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


def read_anatomy(checkpoint: Checkpoint, *, family: Family | None = None) -> Anatomy:
    """Read the anatomy of a model folder, converted or not.

    Args:
        checkpoint: the folder's headers.
        family: in place of the table's row: the one of a probe.

    Raises:
        PlanRefusedError: the family is not supported, or its attention is not causal.
        CheckpointError: config.json lacks what it must say, or disagrees with the tensors.
    """
    config = unlock(checkpoint.config)
    block = config.pop("surgery", None)
    operations = _operations(block)
    check_format_version(block.get("format_version") if block is not None else None, checkpoint.folder.name)
    earlier = _operations(block.get("base"), what="surgery.base") if operations else ()
    family = family or family_of(checkpoint.config, _finding(checkpoint))
    _check_text_type(family, config)
    own = family.text_config(config)
    reader = _Reader(family, own)
    if own.get("use_bidirectional_attention"):
        raise PlanRefusedError("config.json: use_bidirectional_attention is on, so the attention is not causal")
    count = reader.layers()
    path = _module_path(checkpoint, family, count)
    modules = [path.format(layer=index) for index in range(count)]
    present = [_query_tensor(checkpoint, family, module) is not None for module in modules]
    kinds = reader.kinds(count, present if family.hybrid else None)
    heads = reader.integer("num_attention_heads")
    kv_heads = reader.integer("num_key_value_heads", heads)
    head_dim = reader.integer("head_dim", reader.integer("hidden_size") // heads)
    if heads % kv_heads:
        raise CheckpointError(f"config.json: {heads} attention heads cannot share {kv_heads} key-value heads")
    positions = reader.integer("max_position_embeddings")
    window, softcap = reader.window(), reader.softcap()
    scaled = reader.scaled(count)
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
        ropes=read_ropes(family, own, reader.rope_labels(count), head_dim),
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
        finding: what is known of the model at hand, for the error.

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
    """How many layers a model of the family has.

    Raises:
        CheckpointError: config.json does not say, or says nonsense.
    """
    return _Reader(family, config).layers()


def _finding(checkpoint: Checkpoint) -> str:
    """What the names of the tensors say of attention in a model that the table does not know."""
    modules = Counter(match[1] for name in checkpoint.tensors if (match := _QUERY_TENSOR.search(name)))
    if not modules:
        return "its tensors hold no projection by a name that is known to make queries"
    query, count = modules.most_common(1)[0]
    return f"its tensors hold {query} in {count} layers"


def _check_text_type(family: Family, config: Mapping[str, Any]) -> None:
    """Some models of several parts take any language model: only a known one may be operated on."""
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
    """Whether the head is the embedding; a model of several parts says so in either of its configs."""
    key = "tie_word_embeddings"
    said = [part[key] for part in (config, family.text_config(config)) if key in part]
    return any(map(bool, said)) if said else bool(family.defaults.get(key))


def _module_path(checkpoint: Checkpoint, family: Family, count: int) -> str:
    """Path of a layer's attention module in the names of the tensors on disk; the model's own where none is there."""
    for path in family.module_paths:
        modules = (path.format(layer=index) for index in range(count))
        if any(_query_tensor(checkpoint, family, module) is not None for module in modules):
            return path
    return family.module_paths[0]


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
        return self.family.value(self.config, key)

    def integer(self, key: str, otherwise: int | None = None, *, least: int = 1) -> int:
        value = self.value(key)
        if value is None:
            value = otherwise
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value < 2**31:
            name = self.family.spelling(key)
            raise CheckpointError(f"config.json: {name} must be a whole number, at least {least}, not {value!r}")
        return value

    def layers(self) -> int:
        """How many layers there are."""
        listed = self.value("layer_types")
        counted = len(listed) if isinstance(listed, list) and self.family.hybrid else None
        count = self.integer("num_hidden_layers", counted)
        if count > 10_000:
            raise CheckpointError(f"config.json: num_hidden_layers is {count}")
        return count

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

    def kinds(self, count: int, has_attention: list[bool] | None = None) -> list[Kind]:
        """What each of ``count`` layers is; in a hybrid, ``has_attention`` tells which have attention at all."""
        if has_attention is not None:
            if not any(has_attention):
                raise CheckpointError(
                    f"none of the {count} layers has the tensors of attention, which {self.family.model_type!r} has",
                    hint="config.json and the safetensors files do not belong together.",
                )
            kinds = self.labels(count)
            if not self._slides():
                kinds = ["full" if kind == "sliding" else kind for kind in kinds]
            return [kind if has else "none" for kind, has in zip(kinds, has_attention, strict=True)]
        if self.family.local == "chunked" and self.window() is None and "chunked" in self.labels(count):
            raise CheckpointError(f"config.json: {self.family.window} is missing, and some layers are chunked")
        if not self._slides():
            return ["full"] * count
        if self.family.sliding == "every":
            return ["sliding"] * count
        return self.labels(count)

    def labels(self, count: int) -> list[Kind]:
        """The kind of each layer as the config names it, whether or not there is a window that makes a difference."""
        if self.family.sliding != "layer_types":
            return ["full"] * count
        known: Mapping[str, Kind] = {label: kind for kind, label in _LABELS.items()}
        own = [_LABELS["full"], _LABELS[self.family.local]]
        listed = self._listed(count, known=None if self.family.hybrid else own)
        if listed is None:
            return self._default_kinds(count)
        return [known.get(name, "full") for name in listed]

    def scaled(self, count: int) -> list[bool]:
        """Which layers' queries the family itself multiplies by a function of the position."""
        key = self.family.scales
        if key is None:
            return [False] * count
        said = self.value(key)
        if not isinstance(said, int):
            raise CheckpointError(f"config.json: {key} must be true or false, not {said!r}")
        # Its code goes by the family's own rule, whatever ``layer_types`` says of the masks.
        return [bool(said) and kind == "full" for kind in self._default_kinds(count)]

    def rope_labels(self, count: int) -> list[str]:
        """Under which name ``rope_parameters`` holds each layer's RoPE, where each kind of layer has its own."""
        kinds: list[Kind] = self.labels(count) if self.family.rope == "by_layer_type" else ["full"] * count
        return [_LABELS[kind] for kind in kinds]

    def _slides(self) -> bool:
        window = self.window()
        return self.family.sliding != "none" and window is not None and window < self.integer("max_position_embeddings")

    def _listed(self, count: int, known: Collection[str] | None) -> list[str] | None:
        """``layer_types``, checked; None where config.json has none."""
        listed = self.value("layer_types")
        if listed is None:
            return None
        names = listed if isinstance(listed, list) else []
        if len(names) != count or not all(isinstance(name, str) and (known is None or name in known) for name in names):
            choices = f", each one of {', '.join(known)}" if known is not None else ""
            raise CheckpointError(f"config.json: layer_types must list {count} layers{choices}, not {listed!r}")
        return names

    def _default_kinds(self, count: int) -> list[Kind]:
        """What the family makes of its layers by its own rule, which holds where ``layer_types`` is absent."""
        key = self.family.local_list
        listed = self.value(key) if key is not None else None
        if listed is None or listed == []:
            return [self._default_kind(index) for index in range(count)]
        given = listed if isinstance(listed, list) else []
        if len(given) != count or any(type(one) is not int or one not in (0, 1) for one in given):
            raise CheckpointError(f"config.json: {key} must list 1 or 0 for {count} layers, not {listed!r}")
        return [self.family.local if one else "full" for one in given]

    def _default_kind(self, index: int) -> Kind:
        """By the layer's number alone."""
        family = self.family
        if family.sliding_from_key is not None:
            return family.local if index >= self.integer(family.sliding_from_key, least=0) else "full"
        if family.sliding_until_key is not None and index >= self.integer(family.sliding_until_key, least=0):
            return "full"
        every = family.full_every
        if family.full_every_key is not None and family.full_every_key in self.config:
            every = self.config[family.full_every_key]
            if not isinstance(every, int) or every < 1:
                raise CheckpointError(
                    f"config.json: {family.full_every_key} must be a positive whole number, not {every!r}"
                )
        if every is None:
            raise CheckpointError(
                f"config.json: layer_types is missing, and {family.model_type!r} has no rule for it",
                hint="Load the model with transformers and save it once: that writes the list.",
            )
        if every == 0:
            return family.local
        return "full" if index % every == (0 if family.full_first else every - 1) else family.local


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
    elif family.query_rows == "gated":
        rows *= 2
    found = checkpoint.tensors[layer.query_tensor].shape
    axis = family.query_axis
    if found[axis : axis + 1] != (rows,):
        raise CheckpointError(
            f"{layer.query_tensor} has shape {found}, but config.json says {layer.heads} heads of {layer.head_dim}, "
            f"which needs {rows} rows"
        )
