"""Architectures that have an operation from the start: the softmax model, converted before it has learned anything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import create_model

from surgery.models.base import Architecture, Vocabulary
from surgery.models.decoder import DecoderArchitecture, DecoderOptions
from surgery.operations import Operation, OperationOptions

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class OperatedArchitecture(Architecture):
    """A softmax model with one operation on every layer; its checkpoint is a converted one."""

    def __init__(self, operation: Operation) -> None:
        assert operation.initial_options is not None
        self.name = operation.name
        self.summary = f"a small Llama-like model with {operation.title} from the start"
        bases: Any = (operation.initial_options, DecoderOptions)
        self.options = create_model("OperatedOptions", __base__=bases)
        self._decoder = DecoderArchitecture()
        self._operation = operation

    def sizes(self, options: Any) -> Mapping[str, str]:
        """Those of the softmax model, and the options of the operation."""
        own = self._own(options)
        return {**self._decoder.sizes(options), self.name: ", ".join(f"{name} {value}" for name, value in own.items())}

    def count_parameters(self, options: Any, vocabulary_size: int) -> int:
        """Those of the softmax model, and the numbers of each head."""
        numbers: int = options.layers * options.heads * self._operation.learned_per_head(self._own(options))
        return self._decoder.count_parameters(options, vocabulary_size) + numbers

    def build(self, options: Any, vocabulary: Vocabulary) -> PreTrainedModel:
        """The softmax model: with the same seed it has the same weights."""
        return self._decoder.build(options, vocabulary)

    def operations(self, options: Any) -> Sequence[OperationOptions]:
        """The operation on every layer, and its options.

        Raises:
            UsageError: the options do not fit together.
        """
        from surgery.conversion.options import parse_operation

        return (parse_operation({"name": self.name, **self._own(options)}),)

    def _own(self, options: Any) -> dict[str, Any]:
        """The options of the operation that have a value."""
        fields = self._operation.initial_options.model_fields if self._operation.initial_options else {}
        return {name: value for name in fields if (value := getattr(options, name)) is not None}
