"""The hooks for evaluation: learned parameters, and attention weights while a model runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from surgery.operations.learned_numbers import LearnedNumbers


@dataclass(frozen=True)
class ObservedRows:
    """The attention of a block of queries, as an operation leaves it, for one sequence.

    Attributes:
        weights: ``(heads, queries, keys)``, float32; a query's weights add up to 1 at most.
        allowed: ``(queries, keys)``: the keys that a query may attend to.
        kept: ``(heads, queries, keys)``: the keys that the operation keeps.
    """

    weights: torch.Tensor
    allowed: torch.Tensor
    kept: torch.Tensor


class MeasuredOperation:
    """The hooks of an operation that ``surgery.evaluation`` calls. Each has a default."""

    def known_start(self, options: Mapping[str, Any]) -> dict[str, float]:
        """The value at which each parameter began in every head; empty where heads began at different values.

        Args:
            options: of the operation, as in config.json.
        """
        return dict(options.get("start") or {})

    def learned_numbers(
        self,
        modules: Sequence[Any],
        options: Mapping[str, Any],
        layers: tuple[int, ...],
        heads: tuple[int, ...],
        length: int,
    ) -> LearnedNumbers:
        """The learned parameters of a loaded model, as plain values for a report.

        Args:
            modules: the operation's own module of each layer.
            options: of the operation, as in config.json.
            layers, heads: numbers of the chosen ones.
            length: tokens of the longest measured sequence.
        """
        from surgery.operations.learned_numbers import read_numbers

        return read_numbers(modules, options, layers, heads, self.known_start(options))

    def observed(self, module: Any, show: Callable[[ObservedRows], None]) -> AbstractContextManager[None] | None:
        """While the context is open, ``show`` gets every block of queries that passes through a layer.

        Args:
            module: the operation's own module of the layer.
            show: called with each block, in order.

        Returns:
            None if the operation changes only the input of the attention backend, so that the weights are those of the
            backend.
        """
        return None
