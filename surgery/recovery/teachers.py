"""The original as a teacher: the same weights with operation and adapter off, or a second copy of the model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, cast

from torch import nn

from surgery.loading import operation_modules, operations_off
from surgery.training.teacher import SecondModel, Teacher

_PEFT = "base_model.model."


class SameWeights(Teacher):
    """The model that learns, with operation and adapter off; its attention modules are matched."""

    def __init__(self) -> None:
        super().__init__(attention_modules)

    @contextmanager
    def teaching(self, model: nn.Module) -> Iterator[nn.Module]:
        """The same model as it was before operation and adapter."""
        with original(model):
            yield model


class SecondCopy(SecondModel):
    """A second copy of the original, where training changes the weights that teach."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model, attention_modules)


def attention_modules(model: nn.Module) -> dict[str, nn.Module]:
    """The operated attention modules, by their place in the layers, whatever wraps the model."""
    found = {name.rpartition(".")[0] for name in operation_modules(model)}
    return {name.removeprefix(_PEFT): model.get_submodule(name) for name in sorted(found)}


@contextmanager
def original(model: nn.Module) -> Iterator[None]:
    """The model as it was before operation and adapter, within a ``with`` block: same weights, both off.

    ``requires_grad`` of every parameter is kept: PEFT's own switch would turn gradients on for every adapter.
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
        stack.enter_context(operations_off(model))
        model.eval()  # a teacher without dropout
        yield
