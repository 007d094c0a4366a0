"""RoPE in config.json: one or several sets of parameters, in any spelling that transformers reads.

transformers 5 writes ``rope_parameters``; older files have ``rope_theta`` and ``rope_scaling``, and some families have
their own keys. If a file has several of them, the precedence is the one of transformers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from surgery.anatomy.families import Family
from surgery.errors import CheckpointError, shown

# Older keys of the same values, at the top level.
THETA_KEYS = ("rope_theta", "rotary_emb_base")
PARTIAL_KEYS = ("partial_rotary_factor", "rotary_pct")
LOCAL_THETA_KEY = "rope_local_base_freq"
DEFAULT_THETA = 10_000.0


@dataclass(frozen=True)
class Rope:
    """The RoPE of a group of layers.

    Attributes:
        label: the key in ``rope_parameters``, a layer type; None if all layers share it.
        layers: numbers of the layers that use it.
        parameters: in the spelling of transformers 5: ``rope_type``, ``rope_theta`` and the parameters of the type.
        dim: number of rotated dimensions of each head.
    """

    label: str | None
    layers: tuple[int, ...]
    parameters: Mapping[str, Any]
    dim: int

    @property
    def type(self) -> str:
        """``default`` unless the frequencies are scaled."""
        return str(self.parameters["rope_type"])

    @property
    def theta(self) -> float:
        """Base of the wavelengths."""
        return float(self.parameters["rope_theta"])


def read_ropes(family: Family, config: Mapping[str, Any], labels: Sequence[str], head_dim: int) -> tuple[Rope, ...]:
    """Every RoPE of a model; none for a family without one.

    Args:
        family: of the model.
        config: of the model, unlocked.
        labels: the layer type of each layer.
        head_dim: size of a head.

    Raises:
        CheckpointError: an entry has the wrong type.
    """
    if family.rope == "none":
        return ()
    given = _mapping(config, "rope_parameters")
    scaling = _mapping(config, "rope_scaling")
    if family.rope == "shared":
        parameters = _filled(scaling or given, _theta(family, config), _partial(family, config))
        return (Rope(None, tuple(range(len(labels))), parameters, _rotated(parameters, head_dim)),)
    found = []
    for label in sorted(set(labels)):
        own = dict(_mapping(given, label))
        theta = _theta(family, config)
        if label == "sliding_attention":
            theta = config.get(LOCAL_THETA_KEY, DEFAULT_THETA)
        else:
            own |= scaling
        parameters = _filled(own, theta, _partial(family, config))
        layers = tuple(layer for layer, kind in enumerate(labels) if kind == label)
        found.append(Rope(label, layers, parameters, _rotated(parameters, head_dim)))
    return tuple(found)


def trained_length(operations: Sequence[Mapping[str, Any]], positions: int) -> int:
    """The length that the source was trained at, in tokens.

    An operation that changes max_position_embeddings records the old value under ``before``; otherwise it is
    ``positions``.
    """
    for options in operations:
        before = options.get("before")
        if isinstance(before, Mapping):
            length = before.get("max_position_embeddings")
            if isinstance(length, int) and length > 0:
                return length
    return positions


def _mapping(config: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = config.get(key)
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise CheckpointError(f"config.json: {key} must be an object, not {shown(value)}")
    return value


def _filled(given: Mapping[str, Any], theta: Any, partial: Any) -> dict[str, Any]:
    parameters = {name: value for name, value in given.items() if name != "type"}
    parameters["rope_type"] = given.get("rope_type") or given.get("type") or "default"
    if parameters.get("rope_theta") is None:
        parameters["rope_theta"] = theta
    if partial is not None:
        parameters.setdefault("partial_rotary_factor", partial)
    for name in ("rope_theta", "partial_rotary_factor", "factor"):
        value = parameters.get(name)
        if value is not None and (not isinstance(value, int | float) or isinstance(value, bool) or not value > 0):
            raise CheckpointError(f"config.json: {name} must be a positive number, not {shown(value)}")
    return parameters


def _theta(family: Family, config: Mapping[str, Any]) -> Any:
    keys = [key for key in THETA_KEYS if key in config] or [key for key in THETA_KEYS if key in family.defaults]
    return {**family.defaults, **config}[keys[0]] if keys else DEFAULT_THETA


def _partial(family: Family, config: Mapping[str, Any]) -> Any:
    keys = [key for key in PARTIAL_KEYS if key in config] or [key for key in PARTIAL_KEYS if key in family.defaults]
    return {**family.defaults, **config}[keys[0]] if keys else None


def _rotated(parameters: Mapping[str, Any], head_dim: int) -> int:
    return int(head_dim * parameters.get("partial_rotary_factor", 1.0))
