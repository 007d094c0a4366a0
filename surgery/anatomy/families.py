"""The supported families, read from ``families.toml`` beside this file. A new family is a new row there."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, TypeVar

from surgery.errors import CheckpointError, PlanRefusedError
from surgery.words import nearest

_FOLDER = Path(__file__).parent
_Value = TypeVar("_Value")
_PATH = re.compile(r"[\w.]*(\{layer\})?[\w.]*")
EMPTY: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True)
class Family:
    """The attention of a family, in the names of transformers' classes and of tensors.

    Attributes:
        model_type: as in config.json.
        name: prefix of the class names.
        architecture: name of transformers' causal language model class; by default ``<name>ForCausalLM``.
        config_class: name of transformers' config class; by default ``<name>Config``.
        base_model: name of transformers' base model class; by default ``<name>Model``.
        base_prefix: prefix of the base model's tensors.
        disk_prefixes: prefixes on disk in place of ``base_prefix``, where transformers renames tensors on loading; in a
            model of several parts, in place of ``base_prefix`` and ``counted_at``.
        text: in a model of several parts (vision and language), the config key of the language model's own config. Only
            the layers of the language model are converted.
        text_types: model types that the language model's own config may have.
        counted_at: module below the base model whose ``forward`` runs the layers; empty for the base model itself.
        attention: path of a layer's attention module below the base model.
        relay: whether its layers do not pass keywords on, so that n must reach the attention modules by another way.
        query: name of the query projection in that module.
        query_rows: output of the projection: ``queries`` alone, ``all`` (queries, keys and values), or ``gated``
            (queries and a gate).
        query_axis: axis of the outputs in the projection's weight; 1 for GPT-2's transposed linear layer.
        output: name of the projection in the attention module whose inputs are the outputs of the heads, one head after
            the other, whether gated or not; empty where something else stands between.
        head: module of the output projection, in the names of tensors on disk.
        softcap: config key of the soft cap on attention scores.
        window: config key of the sliding window.
        window_gate: config key that must be true for the window to be used.
        sliding: which layers use the window: ``none``, ``every`` layer if config.json has a window, or the layers that
            ``layer_types`` lists.
        local: how a layer without full attention uses the window: ``sliding``, or ``chunked`` into chunks of this size.
        local_list: without ``layer_types``: config key of a list with 1 for each sliding or chunked layer, else 0.
        full_every: without ``layer_types``: every N-th layer uses full attention (the family's default); 0 for none.
        full_first: whether the first layer of each such group uses full attention, instead of the last.
        full_every_key: config key that overrides ``full_every``.
        sliding_from_key: without ``layer_types``: config key of the first sliding layer.
        sliding_until_key: without ``layer_types``: config key of the first layer after the last sliding layer.
        scales: config key with which the family itself multiplies the queries of full layers by a function of the
            position.
        since: the first version of transformers in which the row is right; the notes give the reason.
        fails: versions of transformers that cannot run their own class of the family, with the reason.
        sinks: whether learned sinks take part in the softmax of every layer.
        hybrid: whether only some layers have attention: the layers with a tensor of the query projection.
        sdpa: whether transformers allows the sdpa backend.
        continues: whether a prompt can be given in pieces with a cache; some state-space layers lose their state.
        rope: rotary positions: one set of parameters for all layers (``shared``), one ``by_layer_type``, or ``none``.
        rope_types: types of RoPE that transformers' class of the family supports.
        keys: the family's own spelling of a config key: ``{"hidden_size": "n_embd"}``; a dot leads into an object.
        defaults: config values of the family that hold if config.json does not have the key.
        breaks: presentations of the input (``verification.presentations``) for which the family's own model in
            transformers computes different logits than for a plain input, and a converted model too; with the reason.
        without: operations that are refused on this family, with the reason; an operation can refuse a family by
            its other keys too (``Operation.family_refusal``).
        notes: notes for users.
        unverified: whether a probe made the row, for one checkpoint; never in the table.
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
    output: str = "o_proj"
    head: str = "lm_head"
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
        """The kind of positions, for tables."""
        return {"shared": "rotary", "by_layer_type": "rotary, by kind of layer", "none": "not rotary"}[self.rope]

    @property
    def for_runtime(self) -> dict[str, Any]:
        """The values that the travelling code reads from the block ``surgery`` of config.json; of a probed row, all."""
        extras = {
            "counted_at": self.counted_at,
            "relay": self.relay,
            "family": self._row() if self.unverified else None,
        }
        return {"attention": self.attention} | {name: value for name, value in extras.items() if value}

    def _row(self) -> dict[str, Any]:
        """The values that differ from the defaults, as JSON values."""
        row = {}
        for entry in fields(self):
            value = getattr(self, entry.name)
            default = {} if entry.name in ("keys", "defaults", "breaks", "without", "fails") else entry.default
            if value != default and entry.name != "model_type":
                row[entry.name] = dict(value) if isinstance(value, Mapping) else value
        return {name: list(value) if isinstance(value, tuple) else value for name, value in row.items()}

    @property
    def module_paths(self) -> tuple[str, ...]:
        """Possible paths of a layer's attention module: first the path in the model, then the paths on disk."""
        own = self.base_prefix + self.attention
        renamed = self.base_prefix + (f"{self.counted_at}." if self.text is not None else "")
        return (own, *(prefix + own.removeprefix(renamed) for prefix in self.disk_prefixes))

    def spelling(self, key: str) -> str:
        """The family's own spelling of a config key: ``n_embd`` for ``hidden_size``; a dot leads into an object."""
        return self.keys.get(key, key)

    def text_config(self, config: Mapping[str, Any]) -> Mapping[str, Any]:
        """The language model's own config; without ``text``, or in an older file without that key, the whole config."""
        part = config.get(self.text) if self.text is not None else None
        return part if isinstance(part, Mapping) else config

    def value(self, config: Mapping[str, Any], key: str) -> Any:
        """The value of a key, in the family's or in Llama's spelling, else the family's default.

        A value null in the config stays None.

        Args:
            config: the content of config.json.
            key: a key of the language model's config, in Llama's spelling.
        """
        for spelling in (self.spelling(key), key):
            *path, last = spelling.split(".")
            holder: Any = self.text_config(config)
            for part in path:
                holder = holder.get(part) if isinstance(holder, Mapping) else None
            if isinstance(holder, Mapping) and last in holder:
                return holder[last]
        return self.defaults.get(key)


_HEADER = re.compile(r"^\[families\.(.+)\]$", re.MULTILINE)


@cache
def _texts() -> dict[str, str]:
    """The text of each row. A command needs one family of the many, and parsing them all takes as long as the rest."""
    _, *parts = _HEADER.split(_FOLDER.joinpath("families.toml").read_text(encoding="utf-8"))
    return dict(zip(parts[::2], parts[1::2], strict=True))


def _row(model_type: str) -> dict[str, Any]:
    """A row with the keys of the row that it names in ``like``; its own keys replace them."""
    row = tomllib.loads(_texts()[model_type])
    parent = row.pop("like", None)
    return {**_row(parent), **row} if parent is not None else row


def _family(model_type: str) -> Family:
    row = _row(model_type)
    unknown = row.keys() - {entry.name for entry in fields(Family)}
    if unknown:
        raise ValueError(f"families.toml: {model_type}: unknown key {sorted(unknown)[0]!r}")
    frozen: dict[str, Any] = {
        name: MappingProxyType(value) if isinstance(value, dict) else tuple(value) if isinstance(value, list) else value
        for name, value in row.items()
    }
    return Family(model_type=model_type, **frozen)


@cache
def _reasons() -> dict[str, str]:
    refused = tomllib.loads(_FOLDER.joinpath("refused.toml").read_text(encoding="utf-8"))["refused"]
    return {name: entry["reason"] for entry in refused for name in entry["model_types"]}


@cache
def _record() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(_FOLDER.joinpath("verified.json").read_text(encoding="utf-8"))
    return dict(sorted(found.items(), key=lambda entry: [int(number) for number in entry[0].split(".")]))


def _verified() -> Mapping[str, tuple[str, ...]]:
    return MappingProxyType(
        {name: tuple(version for version, run in _record().items() if name in run["passed"]) for name in _texts()}
    )


class Table(Mapping[str, _Value]):
    """A mapping that is read when it is first used, and makes a value when it is first asked for.

    Args:
        keys: gives the keys, in their order.
        value: makes the value of a key.
    """

    def __init__(self, keys: Callable[[], Iterable[str]], value: Callable[[str], _Value]) -> None:
        self._keys, self._value = cache(lambda: dict.fromkeys(keys())), cache(value)

    def __getitem__(self, key: str) -> _Value:
        if key not in self._keys():
            raise KeyError(key)
        return self._value(key)

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys())

    def __len__(self) -> int:
        return len(self._keys())


FAMILIES: Mapping[str, Family] = Table(_texts, _family)
# Versions of transformers with which each family passed the tests, oldest first; tests/recording.py writes them.
VERIFIED: Mapping[str, tuple[str, ...]] = _verified()
VERIFIED_WITH: tuple[str, ...] = tuple(_record())
# Refused families, with the reason.
REFUSED: Mapping[str, str] = Table(_reasons, lambda model_type: _reasons()[model_type])


def probed_family(model_type: str, row: Any) -> Family:
    """The row of a probe, from the config.json of a converted checkpoint.

    Raises:
        CheckpointError: a key is unknown, a value has the wrong type, or a name is not an identifier.
    """
    from pydantic import TypeAdapter, ValidationError

    known = {entry.name for entry in fields(Family)} - {"model_type"}
    try:
        if not isinstance(row, Mapping) or not row.keys() <= known or row.get("unverified") is not True:
            raise ValueError("not the row of a probe")
        text = json.dumps({**row, "model_type": model_type})
        family: Family = TypeAdapter(Family).validate_json(text, strict=True)
        names = (family.architecture, family.config_class, family.base_model, family.query, *family.keys.values())
        paths = (family.base_prefix, *family.disk_prefixes, family.counted_at, family.attention)
        if not all(map(str.isidentifier, names)) or not all(map(_PATH.fullmatch, paths)):
            raise ValueError("a name or path in it is not valid")
    except (ValidationError, ValueError, TypeError) as error:
        raise CheckpointError(f"config.json: surgery.family: {error}") from error
    return family


def find_family(model_type: str, finding: str = "") -> Family:
    """The row of a model type.

    Args:
        model_type: as in config.json.
        finding: facts about the model, for the error.

    Raises:
        PlanRefusedError: the family is refused, with the reason, or unknown, with the nearest family.
    """
    if model_type in FAMILIES:
        return FAMILIES[model_type]
    if model_type in REFUSED:
        raise PlanRefusedError(f"the family {model_type!r} is refused: {REFUSED[model_type]}")
    close = nearest(model_type, FAMILIES)
    nearby = f"The nearest supported family is {close!r}. " if close else ""
    raise PlanRefusedError(
        f"the family {model_type!r} is not supported" + (f"; {finding}" if finding else ""),
        hint=f"{nearby}`surgery families` lists the supported ones. `surgery convert --allow-unverified` probes its "
        "model in transformers, without the weights, and converts it if possible.",
    )
