"""The section ``train`` of a recipe: the trained parameters and layers."""

from __future__ import annotations

import re
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, field_validator

from surgery.schemas.section import Section

_RANGE = re.compile(r"(\d{1,6})(?:-(\d{1,6}))?")


class Train(Section):
    """The trained layers and parameters.

    Attributes:
        changes_weights: whether the weights of the source are trained, so that they cannot teach.
        needs_operations: whether only a converted model can be trained, and the run compares it with its source.
    """

    changes_weights: ClassVar[bool] = False
    needs_operations: ClassVar[bool] = True

    layers: str | list[NonNegativeInt] = Field(
        default="all", description="Layers to train: all, ranges such as 0-9,20, or a list."
    )

    @field_validator("layers", mode="before")
    @classmethod
    def _one_layer(cls, value: Any) -> Any:
        return [value] if type(value) is int else value

    @field_validator("layers")
    @classmethod
    def _layers(cls, value: str | list[int]) -> str | list[int]:
        if isinstance(value, str) and value != "all":
            for part in value.split(","):
                match = _RANGE.fullmatch(part.strip())
                if match is None or (match[2] is not None and int(match[2]) < int(match[1])):
                    raise ValueError("must hold layers and ranges of layers, such as 0-9,12")
        elif value == []:
            raise ValueError("must name at least one layer")
        return value

    def chosen_layers(self, count: int) -> list[int]:
        """The layer numbers in ascending order, for a model of ``count`` layers; some may be too large."""
        if self.layers == "all":
            return list(range(count))
        if isinstance(self.layers, list):
            return sorted(set(self.layers))
        chosen: set[int] = set()
        for part in self.layers.split(","):
            first, _, last = part.strip().partition("-")
            chosen.update(range(int(first), int(last or first) + 1))
        return sorted(chosen)


class TrainOperation(Train):
    """Only the learned parameters of the operation: a few hundred numbers."""

    what: Literal["scale"] = "scale"


class TrainLora(Train):
    """Low-rank changes (LoRA) of the linear layers in the attention.

    ``scale+lora``: beside the learned parameters of the operation; ``lora``: the operation stays as it is.
    """

    what: Literal["scale+lora", "lora"]
    rank: PositiveInt = Field(default=16, description="Rank of each low-rank change.")
    alpha: PositiveFloat = Field(default=32.0, description="Scale of the change: alpha / rank.")
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(default=0.0, description="Dropout before the low-rank change.")
    rslora: bool = Field(default=False, description="Scale the change by alpha / sqrt(rank).")
    merge: bool = Field(
        default=True,
        description="Add the change to the weights at the end. With false the output is an adapter for PEFT and "
        "`surgery merge`; it names its base.",
    )
    dora: bool = Field(default=False, description="Learn magnitude and direction of the weights separately (DoRA).")
    targets: Literal["auto"] | list[str] = Field(
        default="auto", description="Names of linear layers in the attention; auto takes all."
    )


class TrainPretraining(Train):
    """Every weight of a model that `surgery new` made, with or without an operation."""

    what: Literal["pretraining"]
    changes_weights: ClassVar[bool] = True
    needs_operations: ClassVar[bool] = False


class TrainFull(Train):
    """Every weight of the chosen layers; with all layers, also embeddings, final norm and head."""

    what: Literal["full"]
    changes_weights: ClassVar[bool] = True
