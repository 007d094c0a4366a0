"""What is minimised. Each objective is a sum over predicted tokens, so that batches of any shape average rightly."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from surgery.data import IGNORED
from surgery.loading import operations_off
from surgery.recovery.recipe import Distill, NextToken

Batch = dict[str, torch.Tensor]


def token_logits(model: nn.Module, batch: Batch) -> torch.Tensor:
    """Logits ``(rows, length, vocabulary)`` of packed rows. No cache: with one, transformers sees no borders."""
    logits: torch.Tensor = model(
        input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False
    ).logits
    return logits


def next_token_sum(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Summed cross-entropy in float32; ``labels`` are `IGNORED` where nothing is predicted."""
    return functional.cross_entropy(
        logits[:, :-1].float().flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED, reduction="sum"
    )


def objective_sum(objective: NextToken | Distill, model: nn.Module, batch: Batch) -> torch.Tensor:
    """Sum of the objective over the predicted tokens of a batch, with gradient."""
    if isinstance(objective, NextToken):
        return next_token_sum(token_logits(model, batch), batch["labels"])
    with torch.no_grad(), original(model):
        teacher = token_logits(model, batch)
    student = token_logits(model, batch)
    loss = objective.share * _divergence_sum(student, teacher, batch["labels"], objective.temperature)
    if objective.share < 1:
        loss = loss + (1 - objective.share) * next_token_sum(student, batch["labels"])
    return loss


def original(model: nn.Module) -> ExitStack:
    """The model as it was before operation and adapter, within a ``with`` block: same weights, both off."""
    stack = ExitStack()
    unwrapped: Any = model.module if hasattr(model, "module") else model
    if hasattr(unwrapped, "disable_adapter"):
        stack.enter_context(unwrapped.disable_adapter())
    stack.enter_context(operations_off(model))
    was_training = model.training
    model.eval()  # a teacher without dropout
    stack.callback(model.train, was_training)
    return stack


def _divergence_sum(
    student: torch.Tensor, teacher: torch.Tensor, labels: torch.Tensor, temperature: float
) -> torch.Tensor:
    """KL(teacher | student), times the squared temperature, which keeps gradients comparable (Hinton et al. 2015)."""
    predicted = labels[:, 1:] != IGNORED
    student_log = (student[:, :-1][predicted].float() / temperature).log_softmax(-1)
    teacher_log = (teacher[:, :-1][predicted].float() / temperature).log_softmax(-1)
    return temperature**2 * functional.kl_div(student_log, teacher_log, reduction="sum", log_target=True)
