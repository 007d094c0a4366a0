"""Sums over predicted tokens, from which objectives are made."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from surgery.data import IGNORED
from surgery.training.logits import Batch, run
from surgery.training.teacher import Teacher


def next_token_sum(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Summed cross-entropy in float32.

    Args:
        logits: ``(rows, positions, vocabulary)``.
        targets: ``(rows, positions)``, the token that follows each position; `IGNORED` where nothing is predicted.
    """
    return functional.cross_entropy(
        logits.float().flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="sum"
    )


def split_targets(batch: Batch, positions: slice) -> tuple[torch.Tensor, torch.Tensor]:
    """The tokens ``(rows, positions)`` that follow some positions, as answers and as held tokens; `IGNORED` elsewhere.

    Args:
        batch: from `surgery.data.collate`.
        positions: that predict.
    """
    following = slice(positions.start + 1, positions.stop + 1)
    held = batch["held"][:, following]
    answers = batch["labels"][:, following].masked_fill(held, IGNORED)
    return answers, batch["input_ids"][:, following].masked_fill(~held, IGNORED)


def divergence_sum(
    student: torch.Tensor, teacher: torch.Tensor, targets: torch.Tensor, temperature: float
) -> torch.Tensor:
    """KL(teacher | student), times the squared temperature, which keeps gradients comparable (Hinton et al. 2015).

    Args:
        student: logits ``(rows, positions, vocabulary)``.
        teacher: logits of the same shape.
        targets: ``(rows, positions)``; positions with `IGNORED` do not count.
        temperature: divides both logits.
    """
    predicted = targets != IGNORED
    student_log = (student[predicted].float() / temperature).log_softmax(-1)
    teacher_log = (teacher[predicted].float() / temperature).log_softmax(-1)
    return temperature**2 * functional.kl_div(student_log, teacher_log, reduction="sum", log_target=True)


def matched_sum(model: nn.Module, batch: Batch, teacher: Teacher) -> torch.Tensor:
    """Squared error of each matched module's output, mean over its entries and modules, summed over tokens.

    Each module is given the hidden states that reach it in the teacher, so no module's error reaches another and all
    of them learn at once (as LoLCATs' attention transfer does, arXiv 2410.10254).
    """
    students = teacher.matched(model)
    calls: dict[str, tuple[tuple[Any, ...], dict[str, Any], torch.Tensor]] = {}
    with torch.no_grad(), teacher.teaching(model) as taught, ExitStack() as hooks:
        for name, module in teacher.matched(taught).items():

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


def within_forward(model: nn.Module, batch: Batch, action: Callable[[nn.Module], torch.Tensor]) -> torch.Tensor:
    """Run an action on the model within the forward pass of the module that wraps it.

    DistributedDataParallel averages the gradients of its own forward pass alone.
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


def _hidden(output: Any) -> torch.Tensor:
    hidden: torch.Tensor = output[0] if isinstance(output, tuple) else output
    return hidden
