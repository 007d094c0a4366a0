"""What is minimised. Each objective is a sum over predicted tokens, so that batches of any shape average rightly."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn
from torch.nn import functional

from surgery.data import IGNORED
from surgery.loading import operation_modules, operations_off
from surgery.recovery.logits import Batch, Logits, pieces, run, summed, targets
from surgery.recovery.recipe import Distill, Match, NextToken

_PEFT = "base_model.model."


def next_token_sum(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Summed cross-entropy in float32.

    Args:
        logits: ``(rows, positions, vocabulary)``.
        targets: ``(rows, positions)``, the token that follows each position; `IGNORED` where nothing is predicted.
    """
    return functional.cross_entropy(
        logits.float().flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="sum"
    )


@dataclass(frozen=True)
class Teacher:
    """A second copy of the original, where what is trained would change the weights that teach."""

    model: nn.Module


def inside(model: nn.Module, batch: Batch, action: Callable[[nn.Module], torch.Tensor]) -> torch.Tensor:
    """Run an action on the model within the forward pass of what wraps it.

    DistributedDataParallel averages the gradients of what its own forward did, and of nothing else.
    """
    if not isinstance(model, nn.parallel.DistributedDataParallel):
        return action(model)
    inner: Any = model.module
    own = inner.__dict__.get("forward")

    def forward(*args: Any, **kwargs: Any) -> torch.Tensor:
        if own is None:
            del inner.forward
        else:
            inner.forward = own
        return action(inner)

    inner.forward = forward
    result: torch.Tensor = model(batch["input_ids"])
    return result


def objective_sum(
    objective: NextToken | Distill | Match, model: nn.Module, batch: Batch, teacher: Teacher | None = None
) -> torch.Tensor:
    """Sum of the objective over the predicted tokens of a batch, with gradient.

    Args:
        objective: which.
        model: that is trained.
        batch: from `surgery.data.collate`.
        teacher: who teaches; by default the model itself with operation and adapter off.
    """
    if isinstance(objective, Match):
        return match_sum(model, batch, teacher)
    parts = pieces(model, batch)
    whole = len(parts) == 1
    if isinstance(objective, NextToken):
        logits = Logits(model, batch, whole=whole)
        return summed(parts, lambda part: next_token_sum(logits(part), targets(batch, part)))
    with torch.no_grad(), teaching(model, teacher) as taught:
        taught_logits = Logits(taught, batch, whole=whole)
    student_logits = Logits(model, batch, whole=whole)

    def distilled(part: slice) -> torch.Tensor:
        predicted, student = targets(batch, part), student_logits(part)
        with torch.no_grad():  # operation and adapter have no part in the head, which is the teacher's in any case
            taught = taught_logits(part)
        loss = objective.share * _divergence_sum(student, taught, predicted, objective.temperature)
        if objective.share < 1:
            loss = loss + (1 - objective.share) * next_token_sum(student, predicted)
        return loss

    return summed(parts, distilled)


def match_sum(model: nn.Module, batch: Batch, teacher: Teacher | None = None) -> torch.Tensor:
    """Squared error of each operated attention's output, mean over its entries and layers, summed over tokens.

    Each layer is given the hidden states that reach it in the original, so no layer's error reaches another and all of
    them learn at once (as LoLCATs' attention transfer does, arXiv 2410.10254).
    """
    students = attention_modules(model)
    calls: dict[str, tuple[tuple[Any, ...], dict[str, Any], torch.Tensor]] = {}
    with torch.no_grad(), teaching(model, teacher) as taught, ExitStack() as hooks:
        for name, module in attention_modules(taught).items():

            def keep(own: nn.Module, args: Any, kwargs: Any, output: Any, name: str = name) -> None:
                calls[name] = (args, dict(kwargs), _hidden(output))

            hooks.callback(module.register_forward_hook(keep, with_kwargs=True).remove)
        run(taught, batch)
    # One entry per predicted token, as in the other objectives: a document's first token sees itself alone.
    counted = (batch["labels"] != IGNORED)[..., None]
    total = torch.zeros((), device=counted.device)
    for name, (args, kwargs, target) in calls.items():
        error = (_hidden(students[name](*args, **kwargs)).float() - target.float()).square()
        total = total + (error.mean(-1, keepdim=True) * counted).sum()
    return total / len(calls)


def attention_modules(model: nn.Module) -> dict[str, nn.Module]:
    """The operated attention modules, by their place in the layers, whatever wraps the model."""
    found = {name.rpartition(".")[0] for name in operation_modules(model)}
    return {name.removeprefix(_PEFT): model.get_submodule(name) for name in sorted(found)}


def _hidden(output: Any) -> torch.Tensor:
    hidden: torch.Tensor = output[0] if isinstance(output, tuple) else output
    return hidden


@contextmanager
def teaching(model: nn.Module, teacher: Teacher | None = None) -> Iterator[nn.Module]:
    """The one that teaches, within a ``with`` block."""
    if teacher is not None:
        yield teacher.model
        return
    with original(model):
        yield model


@contextmanager
def original(model: nn.Module) -> Iterator[None]:
    """The model as it was before operation and adapter, within a ``with`` block: same weights, both off.

    What is trained stays as it is chosen: PEFT's own switch would turn gradients on for every adapter.
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


def _divergence_sum(
    student: torch.Tensor, teacher: torch.Tensor, targets: torch.Tensor, temperature: float
) -> torch.Tensor:
    """KL(teacher | student), times the squared temperature, which keeps gradients comparable (Hinton et al. 2015)."""
    predicted = targets != IGNORED
    student_log = (student[predicted].float() / temperature).log_softmax(-1)
    teacher_log = (teacher[predicted].float() / temperature).log_softmax(-1)
    return temperature**2 * functional.kl_div(student_log, teacher_log, reduction="sum", log_target=True)
