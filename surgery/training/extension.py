"""Extensions of a training: extra loss terms, parameters set by a schedule, numbers for the log.

The engine does not know their purpose. Any object with the hooks of `Extension` can be one; it need not derive from it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch

from surgery.training.held_out import HeldOutPass


class Extension(Protocol):
    """Watches one model in one stage.

    Attributes:
        term: key of its extra loss term in the log; None without one.
        loss_may_rise: whether the loss is expected to rise, so that the guard must not watch.
    """

    term: str | None
    loss_may_rise: bool

    def begin_pass(self) -> None:
        """Forget the last forward pass; called before each one that trains."""

    def extra_loss(self) -> torch.Tensor | None:
        """The extra loss term of the last pass, per predicted token, with gradient; None for none."""

    def pass_numbers(self) -> Mapping[str, torch.Tensor]:
        """Numbers about the last pass; the log has their mean over the step's predicted tokens."""

    def set_parameters(self, step: int, steps: int) -> Mapping[str, float]:
        """Set the parameters that follow a schedule, for a step (from 0) of a stage; the values, for the log."""

    def numbers(self) -> Mapping[str, Any]:
        """Other numbers for each step's row of the log."""

    def held_out_numbers(self, passes: Sequence[HeldOutPass]) -> Mapping[str, float]:
        """Measured on held-out rows; the log has them as ``held_out_<key>``."""

    def check_trial(self) -> None:
        """Look at the gradients of the trial step.

        Raises:
            SurgeryError: training would have no effect.
        """


class ExtraTerms:
    """The extra loss terms of all extensions, and their numbers, summed over the predicted tokens of a step."""

    def __init__(self, extensions: Sequence[Extension]) -> None:
        self._extensions = extensions
        self._sums: dict[str, torch.Tensor] = {}
        self._tokens: torch.Tensor | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Keys of the terms in the log."""
        return tuple(extension.term for extension in self._extensions if extension.term is not None)

    def begin_pass(self) -> None:
        """Forget the last forward pass."""
        for extension in self._extensions:
            extension.begin_pass()

    def extra_loss(self, tokens: torch.Tensor) -> torch.Tensor | float:
        """All terms of the last pass, summed over its predicted tokens.

        Args:
            tokens: number of predicted tokens, a scalar.
        """
        total: torch.Tensor | float = 0.0
        has_numbers = False
        for extension in self._extensions:
            for name, number in extension.pass_numbers().items():
                self._add(name, tokens * number.detach())
                has_numbers = True
            extra = extension.extra_loss()
            if extra is not None:
                assert extension.term is not None
                own = tokens * extra
                self._add(extension.term, own.detach())
                total = total + own
                has_numbers = True
        if has_numbers:
            self._tokens = tokens if self._tokens is None else self._tokens + tokens
        return total

    def step_means(self, reduce: Callable[[torch.Tensor], torch.Tensor]) -> dict[str, float]:
        """Means over the step's predicted tokens, by key; the sums start again at 0.

        Args:
            reduce: sums a tensor over all processes.
        """
        if self._tokens is None:
            return {}
        tokens, *sums = reduce(torch.stack([self._tokens.to(torch.float32), *self._sums.values()])).tolist()
        found = {name: value / tokens for name, value in zip(self._sums, sums, strict=True)}
        self._sums, self._tokens = {}, None
        return found

    def _add(self, name: str, number: torch.Tensor) -> None:
        number = number.to(torch.float32)
        self._sums[name] = self._sums[name] + number if name in self._sums else number
