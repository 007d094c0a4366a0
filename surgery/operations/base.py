"""The shape of an operation: its options, and the hooks that a plan is made with."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from surgery.anatomy import Anatomy, AttentionLayer
from surgery.errors import PlanRefusedError
from surgery.operations.measured import MeasuredOperation

LayerChoice = Literal["full", "sliding", "chunked", "all"]
_HIGHEST = 10_000
Number = Annotated[int, Field(ge=0, le=_HIGHEST)]


@dataclass(frozen=True)
class PlannedTensor:
    """A tensor that the operation adds: name, shape, and what it is filled with: one value, or one for each element.

    Stored as float32.
    """

    name: str
    shape: tuple[int, ...]
    start: float | tuple[float, ...]


def parse_layers(text: str, words: Sequence[str] = ()) -> tuple[int, ...]:
    """``0-3,7`` as (0, 1, 2, 3, 7).

    Args:
        text: numbers and ranges.
        words: what could have stood in place of the whole text, for the error.

    Raises:
        ValueError: the text is not such a list.
    """
    instead = f", nor one of {', '.join(words)}, each of which stands alone" if words else ""
    chosen: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not all(number.isascii() and number.isdigit() for number in ([first, last] if dash else [first])):
            raise ValueError(f"{part.strip()!r} is neither a number nor a range like 0-3{instead}")
        low, high = int(first), int(last) if dash else int(first)
        if high < low or high > _HIGHEST:
            raise ValueError(f"{part.strip()!r} is not an ascending range of layers or heads")
        chosen.update(range(low, high + 1))
    return tuple(sorted(chosen))


class OperationOptions(BaseModel):
    """What every operation can be told: on which layers.

    Attributes:
        name: the operation.
        layers: ``full`` (every full-attention layer), ``sliding``, ``chunked``, ``all``, or numbers such as ``0-3,7``.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    layers: LayerChoice | tuple[Number, ...] = "full"

    @field_validator("layers", "heads", "keep_softmax", mode="before", check_fields=False)
    @classmethod
    def _numbers(cls, value: Any, info: ValidationInfo) -> Any:
        words = get_args(LayerChoice) if info.field_name == "layers" else ()
        if isinstance(value, str) and value not in words:
            return parse_layers(value, words)
        return tuple(value) if isinstance(value, Iterable) and not isinstance(value, str) else value

    @field_validator("layers", "heads", "keep_softmax", check_fields=False)
    @classmethod
    def _in_order(cls, value: Any) -> Any:
        return tuple(sorted(set(value))) if isinstance(value, tuple) else value

    def resolved(self) -> dict[str, Any]:
        """As written into config.json."""
        return self.model_dump(mode="json")


class HeadOptions(OperationOptions):
    """Options of an operation on single heads.

    Attributes:
        heads: query heads in each of the layers; all of them where absent.
    """

    heads: tuple[Number, ...] | None = None


class Operation(MeasuredOperation, ABC):
    """One thing that can be done to attention.

    Class attributes:
        name: as in ``--to NAME`` and in config.json.
        summary: one line for listings.
        options: the schema.
        explanation: what a reader of the card should know of it, in Markdown.
        in_config_alone: whether the family's own class performs it as config.json says, so that no code has to travel.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    options: ClassVar[type[OperationOptions]]
    explanation: ClassVar[str]
    in_config_alone: ClassVar[bool] = False

    def refusal(self, layer: AttentionLayer) -> str | None:
        """Why the operation can never be applied to this layer, or None."""
        if layer.kind == "none":
            return "this layer has no attention"
        if layer.kind in ("linear", "latent"):
            return f"{layer.kind} attention has no scores to operate on"
        return None

    def skipping(self, layer: AttentionLayer) -> str | None:
        """Why the operation is not applied to this layer unless it is asked for, or None."""
        return self.refusal(layer)

    def obstacle(self, layer: AttentionLayer, anatomy: Anatomy) -> str | None:
        """As :meth:`skipping`, with the whole model in view."""
        return self.skipping(layer)

    def way(self, layer: AttentionLayer, anatomy: Anatomy) -> str | None:
        """The option of `surgery convert` that overcomes :meth:`obstacle`, or None where nothing does."""
        return None if self.refusal(layer) else f"--layers {layer.kind}"

    def choose_layers(self, options: OperationOptions, anatomy: Anatomy) -> tuple[int, ...]:
        """Numbers of the layers that ``options.layers`` names.

        Raises:
            PlanRefusedError: no layer is left, or one is named that does not exist or cannot be operated on.
        """
        layers = anatomy.layers
        if isinstance(options.layers, tuple):
            for index in options.layers:
                if index >= len(layers):
                    raise PlanRefusedError(f"layer {index} does not exist; the model has layers 0-{len(layers) - 1}")
                if reason := self.refusal(layers[index]):
                    raise PlanRefusedError(f"layer {index}: {reason}")
            if not options.layers:
                raise PlanRefusedError("no layer is chosen")
            return options.layers
        wanted = ("full", "sliding", "chunked") if options.layers == "all" else (options.layers,)
        chosen = tuple(layer.index for layer in layers if layer.kind in wanted and self.refusal(layer) is None)
        if not chosen:
            reasons = sorted({self.skipping(layer) or f"it is a {layer.kind}-attention layer" for layer in layers})
            kinds = dict.fromkeys(layer.kind for layer in layers if self.refusal(layer) is None)
            ways = [f"--layers {kind}" for kind in ("all", *kinds) if kind in get_args(LayerChoice)] if kinds else []
            raise PlanRefusedError(
                f"nothing to convert: no layer of this model is chosen by --layers {options.layers} "
                f"({'; '.join(reasons)})",
                hint=f"Choose layers with {', '.join(ways)} or by number, as --layers 0-3,7." if ways else None,
            )
        return chosen

    def check_heads(self, options: HeadOptions, anatomy: Anatomy) -> None:
        """Raises PlanRefusedError if a head is named that does not exist."""
        wrong = [head for head in options.heads or () if head >= anatomy.heads]
        if wrong:
            raise PlanRefusedError(f"head {wrong[0]} does not exist; the model has heads 0-{anatomy.heads - 1}")
        if options.heads == ():
            raise PlanRefusedError("no head is chosen")

    @abstractmethod
    def resolve(self, options: Any, anatomy: Anatomy) -> OperationOptions:
        """Fill in every option that was left open.

        Raises:
            PlanRefusedError: the operation cannot be applied as asked.
        """

    @abstractmethod
    def tensors(self, options: Any, anatomy: Anatomy) -> tuple[PlannedTensor, ...]:
        """The tensors that resolved options add, in order."""

    @abstractmethod
    def identity(self, options: Any) -> str | None:
        """In which range the model starts as exactly the old one (``everywhere``, ``n <= 8192``), or None."""

    @abstractmethod
    def describe(self, options: Any) -> str:
        """Resolved options in one line, for plans and cards; layers, heads and identity are shown beside it."""

    def clash(self, options: Any, other: OperationOptions) -> str | None:
        """Why resolved options cannot stand in one plan with those of another operation, or None."""
        return None

    def explain(self, options: Any) -> str:
        """What a reader of the card should know of resolved options, in Markdown."""
        return self.explanation

    def config_changes(self, options: Any, anatomy: Anatomy) -> Mapping[str, Any]:
        """New value of each key of the family's own config.json that resolved options change; None removes a key."""
        return {}

    def warnings(self, options: Any, anatomy: Anatomy) -> tuple[str, ...]:
        """What a user should know before this is done."""
        return ()
