"""The source model as a teacher: the same weights with operation and adapter off, or a second copy."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, cast

from torch import nn

from surgery.loading import operation_modules, operations_off
from surgery.training.teacher import SecondModel, Teacher

_PEFT = "base_model.model."


class SameWeights(Teacher):
    """The trained model with operation and adapter off; its attention modules can be matched.

    Args:
        keep: names of operations that stay on.
    """

    def __init__(self, keep: Collection[str] = ()) -> None:
        super().__init__(attention_modules)
        self._keep = keep

    @contextmanager
    def teaching(self, model: nn.Module) -> Iterator[nn.Module]:
        """The same model as it was before operation and adapter."""
        with original(model, keep=self._keep):
            yield model


class SecondCopy(SecondModel):
    """A second copy of the source model, for a training that changes the weights."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model, attention_modules)


def attention_modules(model: nn.Module) -> dict[str, nn.Module]:
    """The attention modules with operations, by path, also in a model that PEFT wraps."""
    found = {name.rpartition(".")[0] for name in operation_modules(model)}
    return {name.removeprefix(_PEFT): model.get_submodule(name) for name in sorted(found)}


@contextmanager
def original(model: nn.Module, *, keep: Collection[str] = ()) -> Iterator[None]:
    """Switch operation and adapter off within a ``with`` block, which gives the source model on the same weights.

    ``requires_grad`` of every parameter is restored: PEFT's switch would turn on the gradients of every adapter.

    Args:
        model: with operations, and perhaps an adapter.
        keep: names of operations that stay on.
    """
    chosen = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    was_training = model.training

    def restore() -> None:
        model.train(was_training)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(chosen[name])

    with ExitStack() as stack:
        stack.callback(restore)
        if hasattr(model, "disable_adapter"):
            stack.enter_context(cast(Any, model).disable_adapter())
        stack.enter_context(operations_off(model, keep=keep))
        model.eval()  # a teacher without dropout
        yield
