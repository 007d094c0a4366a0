"""The families, as data: ``families.toml`` beside this file. Adding a family is adding a row there."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from surgery.errors import CheckpointError, PlanRefusedError

_PATH = re.compile(r"[\w.]*(\{layer\})?[\w.]*")
EMPTY: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True)
class Family:
    """Where a family keeps its attention, in the names of transformers' classes and of tensors.

    Attributes:
        model_type: as in config.json.
        name: stem of the class names.
        architecture: name of transformers' causal language model class; ``<name>ForCausalLM`` unless the row says.
        config_class: name of transformers' config class; ``<name>Config`` unless the row says.
        base_model: name of transformers' base model class; ``<name>Model`` unless the row says.
        base_prefix: prefix of the base model's tensors.
        disk_prefixes: what stands for ``base_prefix`` in the names of tensors on disk, where transformers renames them;
            in a model of several parts, for ``base_prefix`` and ``counted_at``.
        text: in a model of several parts, vision and language: config key of the language model's own config. Its
            layers are operated on, the rest is left alone.
        text_types: model types that the language model's own config may have.
        counted_at: module below the base model whose ``forward`` runs the layers; empty for the base model itself.
        attention: path of a layer's attention module below the base model.
        relay: whether its layers keep keywords to themselves, so that n must be handed over their heads.
        query: projection in that module that makes the queries.
        query_rows: what its outputs are: the queries alone, queries, keys and values together, or queries and a gate.
        query_axis: axis of the projection's weight that its outputs lie on; 1 for GPT-2's transposed linear layer.
        softcap: config key of the soft cap on attention scores.
        window: config key of the sliding window.
        window_gate: config key that must be true for the window to count.
        sliding: which layers slide: none, every layer once there is a window, or those that ``layer_types`` lists.
        local: what the layers that are not full do with the window: it slides, or the keys are cut into chunks of it.
        local_list: where ``layer_types`` is absent, config key of a list that has 1 for each local layer, else 0.
        full_every: where ``layer_types`` is absent, every how many layers one is full (the family's default); 0: none.
        full_first: the full layer comes first in each such group, not last.
        full_every_key: config key that overrides ``full_every``.
        sliding_from_key: where ``layer_types`` is absent, config key of the first layer that slides.
        sliding_until_key: where ``layer_types`` is absent, config key of the layer from which on all are full.
        scales: config key that makes the family itself multiply the queries of some layers by a function of the
            position: of those that its own rule calls full.
        since: the first transformers in which the row holds, where an older one is supported; the notes say why.
        fails: versions of transformers whose own class of the family cannot be run, with the reason.
        sinks: learned sinks take part in the softmax of every layer.
        hybrid: only some layers have attention: those that have the query projection's tensor.
        sdpa: whether transformers allows the sdpa backend.
        continues: whether a prompt may be given in several pieces with a cache; some state-space layers forget.
        rope: one set of rotary parameters for all layers, or one for each kind of layer, or no rotary positions.
        rope_types: kinds of RoPE that transformers' class of the family runs.
        keys: the family's own spelling of a config key: ``{"hidden_size": "n_embd"}``; a dot leads into an object.
        defaults: config values that the family assumes where config.json is silent.
        breaks: presentations (``verification.presentations``) in which the family's own model in transformers says
            something else than plainly, so that a converted one does too; with the reason.
        without: operations that are refused on this family for a reason of its own, with the reason; an operation may
            refuse more by what the other keys say (``Operation.family_refusal``).
        notes: what else a user should know.
        unverified: a probe made the row, for one checkpoint; the table has none.
    """

    model_type: str
    name: str
    architecture: str = ""
    config_class: str = ""
    base_model: str = ""
    base_prefix: str = "model."
    disk_prefixes: tuple[str, ...] = ()
    text: str | None = None
    text_types: tuple[str, ...] = ()
    counted_at: str = ""
    attention: str = "layers.{layer}.self_attn"
    relay: bool = False
    query: str = "q_proj"
    query_rows: Literal["queries", "all", "gated"] = "queries"
    query_axis: Literal[0, 1] = 0
    softcap: str | None = None
    window: str | None = None
    window_gate: str | None = None
    sliding: Literal["none", "every", "layer_types"] = "none"
    local: Literal["sliding", "chunked"] = "sliding"
    local_list: str | None = None
    full_every: int | None = None
    full_first: bool = False
    full_every_key: str | None = None
    sliding_from_key: str | None = None
    sliding_until_key: str | None = None
    scales: str | None = None
    since: str | None = None
    fails: Mapping[str, str] = field(default_factory=lambda: EMPTY)
    sinks: bool = False
    hybrid: bool = False
    sdpa: bool = True
    continues: bool = True
    rope: Literal["shared", "by_layer_type", "none"] = "shared"
    rope_types: tuple[str, ...] = ("default", "linear", "yarn")
    keys: Mapping[str, str] = field(default_factory=lambda: EMPTY)
    defaults: Mapping[str, Any] = field(default_factory=lambda: EMPTY)
    breaks: Mapping[str, str] = field(default_factory=lambda: EMPTY)
    without: Mapping[str, str] = field(default_factory=lambda: EMPTY)
    notes: tuple[str, ...] = ()
    unverified: bool = False

    def __post_init__(self) -> None:
        for attribute, suffix in (("architecture", "ForCausalLM"), ("config_class", "Config"), ("base_model", "Model")):
            if not getattr(self, attribute):
                object.__setattr__(self, attribute, self.name + suffix)

    @property
    def positions(self) -> str:
        """The kind of positions, in words."""
        return {"shared": "rotary", "by_layer_type": "rotary, by kind of layer", "none": "not rotary"}[self.rope]

    @property
    def for_runtime(self) -> dict[str, Any]:
        """What the travelling code must know, for the block ``surgery`` of config.json; a probed row travels whole."""
        extras = {
            "counted_at": self.counted_at,
            "relay": self.relay,
            "family": self._row() if self.unverified else None,
        }
        return {"attention": self.attention} | {name: value for name, value in extras.items() if value}

    def _row(self) -> dict[str, Any]:
        """What differs from the defaults, as JSON has it."""
        row = {}
        for entry in fields(self):
            value = getattr(self, entry.name)
            default = {} if entry.name in ("keys", "defaults", "breaks", "without", "fails") else entry.default
            if value != default and entry.name != "model_type":
                row[entry.name] = dict(value) if isinstance(value, Mapping) else value
        return {name: list(value) if isinstance(value, tuple) else value for name, value in row.items()}

    @property
    def module_paths(self) -> tuple[str, ...]:
        """Full paths of a layer's attention module: the model's own first, then those that names on disk may have."""
        own = self.base_prefix + self.attention
        renamed = self.base_prefix + (f"{self.counted_at}." if self.text is not None else "")
        return (own, *(prefix + own.removeprefix(renamed) for prefix in self.disk_prefixes))

    def spelling(self, key: str) -> str:
        """The family's own spelling of a config key: ``n_embd`` for ``hidden_size``; a dot leads into an object."""
        return self.keys.get(key, key)

    def text_config(self, config: Mapping[str, Any]) -> Mapping[str, Any]:
        """The language model's own config: the whole but in a model of several parts, and in older files of those."""
        part = config.get(self.text) if self.text is not None else None
        return part if isinstance(part, Mapping) else config

    def value(self, config: Mapping[str, Any], key: str) -> Any:
        """What a config says of a key in either spelling, else the family's default; null where it says null.

        Args:
            config: as config.json has it.
            key: in Llama's spelling; of the language model.
        """
        for spelling in (self.spelling(key), key):
            *path, last = spelling.split(".")
            holder: Any = self.text_config(config)
            for part in path:
                holder = holder.get(part) if isinstance(holder, Mapping) else None
            if isinstance(holder, Mapping) and last in holder:
                return holder[last]
        return self.defaults.get(key)


@cache
def _document() -> dict[str, Any]:
    return tomllib.loads(Path(__file__).with_name("families.toml").read_text(encoding="utf-8"))


def _row(model_type: str, rows: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """A row with what it takes over from the row that it is ``like``; a key of its own replaces the other's."""
    row = dict(rows[model_type])
    parent = row.pop("like", None)
    return {**_row(parent, rows), **row} if parent is not None else row


def _family(model_type: str, row: Mapping[str, Any]) -> Family:
    unknown = row.keys() - {entry.name for entry in fields(Family)}
    if unknown:
        raise ValueError(f"families.toml: {model_type}: unknown key {sorted(unknown)[0]!r}")
    frozen: dict[str, Any] = {
        name: MappingProxyType(value) if isinstance(value, dict) else tuple(value) if isinstance(value, list) else value
        for name, value in row.items()
    }
    return Family(model_type=model_type, **frozen)


def _families() -> Mapping[str, Family]:
    rows = _document()["families"]
    return MappingProxyType({model_type: _family(model_type, _row(model_type, rows)) for model_type in rows})


def _refused() -> Mapping[str, str]:
    return MappingProxyType(
        {name: entry["reason"] for entry in _document()["refused"] for name in entry["model_types"]}
    )


@cache
def _record() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(__file__).with_name("verified.json").read_text(encoding="utf-8"))
    return dict(sorted(found.items(), key=lambda entry: [int(number) for number in entry[0].split(".")]))


def _verified() -> Mapping[str, tuple[str, ...]]:
    return MappingProxyType(
        {
            name: tuple(version for version, run in _record().items() if name in run["passed"])
            for name in _document()["families"]
        }
    )


FAMILIES: Mapping[str, Family] = _families()
# Versions of transformers that each family passed the tests with, oldest first; what wrote it is tests/recording.py.
VERIFIED: Mapping[str, tuple[str, ...]] = _verified()
VERIFIED_WITH: tuple[str, ...] = tuple(_record())
# Families that are refused with the reason, so that nobody has to guess.
REFUSED: Mapping[str, str] = _refused()


def probed_family(model_type: str, row: Any) -> Family:
    """The row that a probe once made, as a converted checkpoint's config.json holds it.

    Raises:
        CheckpointError: it is none: a key is unknown, a value has another type, or a name is no name.
    """
    from pydantic import TypeAdapter, ValidationError

    known = {entry.name for entry in fields(Family)} - {"model_type"}
    try:
        if not isinstance(row, Mapping) or not row.keys() <= known or row.get("unverified") is not True:
            raise ValueError("not a row of the table")
        text = json.dumps({**row, "model_type": model_type})
        family: Family = TypeAdapter(Family).validate_json(text, strict=True)
        names = (family.architecture, family.config_class, family.base_model, family.query, *family.keys.values())
        paths = (family.base_prefix, *family.disk_prefixes, family.counted_at, family.attention)
        if not all(map(str.isidentifier, names)) or not all(map(_PATH.fullmatch, paths)):
            raise ValueError("a name in it is none")
    except (ValidationError, ValueError, TypeError) as error:
        raise CheckpointError(f"config.json: surgery.family: {error}") from error
    return family


def find_family(model_type: str, finding: str = "") -> Family:
    """The row of a model type.

    Args:
        model_type: as in config.json.
        finding: what is known of the model at hand, for the error.

    Raises:
        PlanRefusedError: there is none, with the reason where one is known, else the nearest family.
    """
    if model_type in FAMILIES:
        return FAMILIES[model_type]
    if model_type in REFUSED:
        raise PlanRefusedError(f"the family {model_type!r} is refused: {REFUSED[model_type]}")
    from rapidfuzz import fuzz, process

    nearest = process.extractOne(model_type, list(FAMILIES), scorer=fuzz.ratio, score_cutoff=60)
    nearby = f"The nearest supported family is {nearest[0]!r}. " if nearest else ""
    raise PlanRefusedError(
        f"the family {model_type!r} is not supported" + (f"; {finding}" if finding else ""),
        hint=f"{nearby}`surgery families` lists those that are. `surgery convert --allow-unverified` has a look at its "
        "model in transformers, without the weights, and goes on where it can.",
    )
