"""The values of config.json about a model's layers, with the defaults of its family."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Literal

from surgery.anatomy.families import Family
from surgery.errors import CheckpointError, shown

Kind = Literal["full", "sliding", "linear", "latent", "chunked", "none"]
# Names of the kinds in ``layer_types``. In a hybrid the tensors tell which layers have attention.
_LABELS: dict[Kind, str] = {
    "full": "full_attention",
    "sliding": "sliding_attention",
    "linear": "linear_attention",
    "chunked": "chunked_attention",
}


class ConfigValues:
    """config.json with the family's defaults, and errors that name the key."""

    def __init__(self, family: Family, config: Mapping[str, Any]) -> None:
        self.family = family
        self.config = config

    def value(self, key: str) -> Any:
        """The value of a key in either spelling, else the family's default."""
        return self.family.value(self.config, key)

    def integer(self, key: str, otherwise: int | None = None, *, least: int = 1) -> int:
        """A whole number, with a default.

        Raises:
            CheckpointError: it is missing, not a whole number, or out of range.
        """
        value = self.value(key)
        if value is None:
            value = otherwise
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value < 2**31:
            name = self.family.spelling(key)
            raise CheckpointError(f"config.json: {name} must be a whole number, at least {least}, not {shown(value)}")
        return value

    def layers(self) -> int:
        """The number of layers."""
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
            raise CheckpointError(f"config.json: {key} must be a positive number, not {shown(value)}")
        return value

    def window(self) -> int | None:
        """The sliding window, unless it is switched off or not shorter than the trained length."""
        family = self.family
        if family.window is None or (family.window_gate and not self.value(family.window_gate)):
            return None
        return None if self.value(family.window) is None else self.integer(family.window)

    def kinds(self, count: int, has_attention: list[bool] | None = None) -> list[Kind]:
        """The kind of each of ``count`` layers; in a hybrid, ``has_attention`` marks the layers with attention."""
        if has_attention is not None:
            if not any(has_attention):
                raise CheckpointError(
                    f"none of the {count} layers of this {self.family.model_type!r} has tensors of attention",
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
        """The kind of each layer that the config names, whether or not the window is in use."""
        if self.family.sliding != "layer_types":
            return ["full"] * count
        known: Mapping[str, Kind] = {label: kind for kind, label in _LABELS.items()}
        own = [_LABELS["full"], _LABELS[self.family.local]]
        listed = self._listed(count, known=None if self.family.hybrid else own)
        if listed is None:
            return self._default_kinds(count)
        return [known.get(name, "full") for name in listed]

    def scaled(self, count: int) -> list[bool]:
        """The layers whose queries the family itself multiplies by a function of the position."""
        key = self.family.scales
        if key is None:
            return [False] * count
        said = self.value(key)
        if not isinstance(said, int):
            raise CheckpointError(f"config.json: {key} must be true or false, not {said!r}")
        # The family's code follows its own rule here, and not ``layer_types``.
        return [bool(said) and kind == "full" for kind in self._default_kinds(count)]

    def rope_labels(self, count: int) -> list[str]:
        """The key of each layer's RoPE in ``rope_parameters``, for families with one RoPE for each kind of layer."""
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
        """The kinds by the family's own rule, which holds without ``layer_types``."""
        key = self.family.local_list
        listed = self.value(key) if key is not None else None
        if listed is None or listed == []:
            return [self._default_kind(index) for index in range(count)]
        given = listed if isinstance(listed, list) else []
        if len(given) != count or any(type(one) is not int or one not in (0, 1) for one in given):
            raise CheckpointError(f"config.json: {key} must list 1 or 0 for {count} layers, not {listed!r}")
        return [self.family.local if one else "full" for one in given]

    def _default_kind(self, index: int) -> Kind:
        """The kind of a layer by its number."""
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
                hint="Load the model with transformers and save it once, which writes the list.",
            )
        if every == 0:
            return family.local
        return "full" if index % every == (0 if family.full_first else every - 1) else family.local
