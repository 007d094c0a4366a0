"""One check of `surgery verify`, as an operation or the verification states it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from surgery.anatomy import Anatomy

if TYPE_CHECKING:
    import torch

Status = Literal["passed", "failed", "skipped"]


@dataclass(frozen=True)
class Check:
    """The result of one check.

    Attributes:
        name: what is checked.
        status: how it ended.
        detail: what was found, or why the check was skipped.
        value: the measured number, where there is one.
        bound: the greatest value that passes, where there is one.
    """

    name: str
    status: Status
    detail: str
    value: float | None = None
    bound: float | None = None


def bounded(name: str, value: float, bound: float, what: str = "greatest logit difference") -> Check:
    """A check that passes if ``value`` is at most ``bound``; a NaN fails."""
    status: Status = "passed" if value <= bound else "failed"
    return Check(name, status, f"{what} {value:.3g} (bound {bound:.3g})", value, bound)


@dataclass(frozen=True)
class CheckedModel:
    """A converted model in memory, as `surgery verify` hands it to an operation's own checks.

    Attributes:
        model: float32, in evaluation mode.
        anatomy: read from its config.json.
        modules: the operation's own modules by path.
        others: names of the other operations on the model.
        logits: runs a short text once and returns the logits ``(1, length, vocabulary)`` on the CPU;
            ``logits(on=names)`` runs it with the named operations alone, ``logits()`` with all of them.
    """

    model: Any
    anatomy: Anatomy
    modules: dict[str, Any]
    others: tuple[str, ...]
    logits: Callable[..., torch.Tensor]
