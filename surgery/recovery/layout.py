"""Where a converted checkpoint's tensors belong, from its config.json: operations, layers, attention modules."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

from surgery.anatomy.anatomy import count_layers, family_of
from surgery.errors import PlanRefusedError, UsageError
from surgery.operations import OPERATIONS
from surgery.recovery.recipe import Recipe

Variant = Literal["operated", "untouched", "temperature"]


class Layout:
    """Which layer a tensor belongs to, from the ``surgery`` block of config.json."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        """Read the block.

        Raises:
            PlanRefusedError: the model was not converted, or its family is not known.
            CheckpointError: config.json does not say how many layers there are.
        """
        block = config.get("surgery")
        if not isinstance(block, Mapping) or not block.get("operations"):
            raise PlanRefusedError(
                "the model was not converted: its config.json has no operations",
                hint=f"Convert it first: surgery convert --to {next(iter(OPERATIONS))} MODEL. Or name operations in "
                "the recipe.",
            )
        self.attention = str(block.get("attention", "layers.{layer}.self_attn"))
        self.operations: list[Mapping[str, Any]] = list(block["operations"])
        self.family = family_of(config)
        # A model of several parts is called otherwise on disk, and its other parts have layers too.
        paths = [self.attention, *(self.family.module_paths if self.family.text is not None else ())]
        before = "|".join(re.escape(path.partition("{layer}")[0]) for path in paths)
        after = re.escape(self.attention.partition("{layer}")[2])
        self._layer = re.compile(rf"(?:^|\.)(?:{before})(\d+)\.")
        self._attention = re.compile(rf"(?:^|\.)(?:{before})(\d+){after}\.(.+)")
        self.count = count_layers(config, self.family)

    @staticmethod
    def described(options: Mapping[str, Any]) -> list[str]:
        """Name and kind of an operation."""
        return [str(options[key]) for key in ("name", "form", "type") if options.get(key) is not None]

    def layer(self, name: str) -> int | None:
        """The layer of a tensor, None outside the layers."""
        match = self._layer.search(name)
        return int(match[1]) if match else None

    def inside_attention(self, name: str) -> tuple[int, str] | None:
        """The layer and the name within its attention module, None outside."""
        match = self._attention.search(name)
        return (int(match[1]), match[2]) if match else None

    def chosen(self, recipe: Recipe) -> list[int]:
        """The layers to train.

        Raises:
            UsageError: the model has not all of them.
        """
        chosen = recipe.train.chosen_layers(self.count)
        beyond = [layer for layer in chosen if layer >= self.count]
        if beyond:
            raise UsageError(
                f"train.layers names layer {beyond[-1]}; the model has {self.count}, 0 to {self.count - 1}"
            )
        return chosen

    def is_layer(self, name: str) -> bool:
        """Whether a module, by its full name, is a layer rather than a part of one."""
        outside = name.rpartition(".")[0]
        return self.layer(f"{name}.") is not None and self.layer(f"{outside}.") is None

    def done(self) -> str:
        """The operations in words, for messages."""
        return " and ".join(sorted({" ".join(self.described(options)) for options in self.operations}))
