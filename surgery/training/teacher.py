"""The model that gives an objective its targets."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext

from torch import nn

FindModules = Callable[[nn.Module], Mapping[str, nn.Module]]


class Teacher(ABC):
    """Gives targets.

    Args:
        matched: the modules of a model whose outputs are compared, by a name that model and teacher share.
    """

    def __init__(self, matched: FindModules | None = None) -> None:
        self._matched = matched

    def matched(self, model: nn.Module) -> Mapping[str, nn.Module]:
        """The modules of a model whose outputs are compared; none by default."""
        return self._matched(model) if self._matched is not None else {}

    @abstractmethod
    def teaching(self, model: nn.Module) -> AbstractContextManager[nn.Module]:
        """The model that teaches, within a ``with`` block.

        Args:
            model: the model that learns.
        """


class SecondModel(Teacher):
    """Another model, in memory beside the one that learns."""

    def __init__(self, model: nn.Module, matched: FindModules | None = None) -> None:
        super().__init__(matched)
        self.model = model

    def teaching(self, model: nn.Module) -> AbstractContextManager[nn.Module]:
        """The other model."""
        return nullcontext(self.model)
