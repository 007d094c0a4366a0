"""The operations, layers and attention modules of a converted checkpoint, from its config.json."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

from surgery.anatomy.anatomy import count_layers, family_of
from surgery.anatomy.families import FAMILIES, Family
from surgery.errors import PlanRefusedError, UsageError
from surgery.operations import OPERATIONS
from surgery.recovery.recipe import Recipe

Variant = Literal["operated", "untouched", "temperature"]
_ATTENTION = "layers.{layer}.self_attn"


class Layout:
    """Finds the layer of a tensor, by the block ``surgery`` of config.json.

    Without operations, the layers are those of the family, or, for an architecture without a family, ``layers.N``.
    """

    def __init__(self, config: Mapping[str, Any], *, needs_operations: bool = True) -> None:
        """Read the block.

        Args:
            config: config.json.
            needs_operations: whether a model without operations is refused.

        Raises:
            PlanRefusedError: the model was not converted, or its family is not supported.
            CheckpointError: config.json does not have the number of layers.
        """
        block = config.get("surgery")
        self.family: Family | None = None
        if not isinstance(block, Mapping) or not block.get("operations"):
            if not needs_operations:
                self._without_operations(config)
                return
            raise PlanRefusedError(
                "the model was not converted: its config.json has no operations",
                hint=f"Convert it first (`surgery convert --to {next(iter(OPERATIONS))} MODEL`), or list operations "
                "in the recipe.",
            )
        self.operations: list[Mapping[str, Any]] = list(block["operations"])
        self.family = family_of(config)
        self._find(str(block.get("attention", _ATTENTION)))
        self.count = count_layers(config, self.family)

    def _without_operations(self, config: Mapping[str, Any]) -> None:
        self.operations = []
        if config.get("model_type") in FAMILIES:
            self.family = family_of(config)
            self.count = count_layers(config, self.family)
        else:
            self.count = int(config.get("num_hidden_layers", 0))
        self._find(_ATTENTION if self.family is None else self.family.attention)

    def _find(self, attention: str) -> None:
        """Set the patterns of the names, from the path of a layer's attention."""
        self.attention = attention
        # A model of several parts has other names on disk, and its other parts have layers too.
        own = self.family
        paths = [attention, *(own.module_paths if own is not None and own.text is not None else ())]
        before = "|".join(re.escape(path.partition("{layer}")[0]) for path in paths)
        after = re.escape(self.attention.partition("{layer}")[2])
        self._layer = re.compile(rf"(?:^|\.)(?:{before})(\d+)\.")
        self._attention = re.compile(rf"(?:^|\.)(?:{before})(\d+){after}\.(.+)")

    def value(self, config: Mapping[str, Any], key: str) -> Any:
        """A value of config.json, or the default of the family."""
        return config.get(key) if self.family is None else self.family.value(config, key)

    @staticmethod
    def described(options: Mapping[str, Any]) -> list[str]:
        """Name and kind of an operation."""
        return [str(options[key]) for key in ("name", "form", "type") if options.get(key) is not None]

    def layer(self, name: str) -> int | None:
        """The layer number of a tensor; None outside the layers."""
        match = self._layer.search(name)
        return int(match[1]) if match else None

    def inside_attention(self, name: str) -> tuple[int, str] | None:
        """The layer number and the name within the attention module; None outside the attention."""
        match = self._attention.search(name)
        return (int(match[1]), match[2]) if match else None

    def chosen(self, recipe: Recipe) -> list[int]:
        """The numbers of the layers to train.

        Raises:
            UsageError: the model does not have all of them.
        """
        chosen = recipe.train.chosen_layers(self.count)
        beyond = [layer for layer in chosen if layer >= self.count]
        if beyond:
            raise UsageError(f"train.layers has layer {beyond[-1]}, but the model has the layers 0 to {self.count - 1}")
        return chosen

    def is_layer(self, name: str) -> bool:
        """Whether the module with this full name is a whole layer."""
        outside = name.rpartition(".")[0]
        return self.layer(f"{name}.") is not None and self.layer(f"{outside}.") is None

    def done(self) -> str:
        """The operations in words, for messages."""
        return " and ".join(sorted({" ".join(self.described(options)) for options in self.operations}))
