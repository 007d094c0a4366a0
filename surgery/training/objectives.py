"""The objectives of a training: one class for each, with its options, its needs, and its loss.

To add one, write a class here and name it in `OBJECTIVES`: the recipe, the plan of memory, the teacher, the guard and
the trainer read the attributes of the class. Nothing here imports torch until a loss is computed.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, TypeAlias

from pydantic import Field, PositiveFloat

from surgery.schemas.section import Section

if TYPE_CHECKING:
    import torch
    from torch import nn

    from surgery.training.logits import Batch
    from surgery.training.teacher import Teacher

# In nats: a loss near zero can double without harm.
_LEAST_RISE = 0.1


class Objective(Section):
    """A loss, as a sum over predicted tokens, so that means over batches of any shape are right.

    Class attributes:
        needs_teacher: whether another model's output is the target.
        logits_held: matrices of logits (rows x positions x vocabulary, float32) that a step holds at once.
        keeps_positions: whether the teacher has the positions of the model, also where an operation changed them.
        calls_modules: whether it runs matched modules on their own, outside the model's forward pass.
        least_rise: a rise of the loss below this is never a divergence.
    """

    name: str
    needs_teacher: ClassVar[bool] = False
    logits_held: ClassVar[int] = 2
    keeps_positions: ClassVar[bool] = False
    calls_modules: ClassVar[bool] = False
    least_rise: ClassVar[float] = _LEAST_RISE

    @abstractmethod
    def total(self, model: nn.Module, batch: Batch, teacher: Teacher | None = None) -> torch.Tensor:
        """Sum over the predicted tokens of a batch, with gradient.

        Args:
            model: the model that is trained.
            batch: from `surgery.data.collate`.
            teacher: gives the target, where the objective needs one.
        """


class NextToken(Objective):
    """Cross-entropy of the next token."""

    name: Literal["next_token"] = "next_token"

    def total(self, model: nn.Module, batch: Batch, teacher: Teacher | None = None) -> torch.Tensor:
        """Summed cross-entropy in nats."""
        from surgery.training.logits import Logits, pieces, summed, targets
        from surgery.training.losses import next_token_sum

        parts = pieces(model, batch)
        logits = Logits(model, batch, whole=len(parts) == 1)
        return summed(parts, lambda part: next_token_sum(logits(part), targets(batch, part)))


def _beside_teacher(
    model: nn.Module,
    batch: Batch,
    teacher: Teacher | None,
    loss: Callable[[slice, torch.Tensor, torch.Tensor], torch.Tensor],
) -> torch.Tensor:
    """Sum of a loss of each piece of the batch, given its places, the model's logits and the teacher's."""
    import torch

    from surgery.training.logits import Logits, pieces, summed

    assert teacher is not None
    parts = pieces(model, batch)
    whole = len(parts) == 1
    with torch.no_grad(), teacher.teaching(model) as taught:
        taught_logits = Logits(taught, batch, whole=whole)
    student_logits = Logits(model, batch, whole=whole)

    def each(part: slice) -> torch.Tensor:
        student = student_logits(part)
        with torch.no_grad():  # the head of the teacher, which has neither operation nor adapter
            taught = taught_logits(part)
        return loss(part, student, taught)

    return summed(parts, each)


class Distill(Objective):
    """Kullback-Leibler divergence from the original model: the same weights with operation and adapter switched off.

    With ``train.what: full`` these weights change, so a second copy of the model teaches and needs memory of its own.
    Use it for forms that change the model at the start (``paper``); a form that starts as the identity learns nothing
    from it.
    """

    name: Literal["distill"]
    temperature: PositiveFloat = Field(default=1.0, description="Divides the logits of both models.")
    share: Annotated[float, Field(gt=0, le=1)] = Field(
        default=1.0, description="Weight of the divergence; the rest is next-token loss."
    )
    needs_teacher: ClassVar[bool] = True
    logits_held: ClassVar[int] = 4

    def total(self, model: nn.Module, batch: Batch, teacher: Teacher | None = None) -> torch.Tensor:
        """Summed divergence in nats, mixed with cross-entropy by ``share``."""
        from surgery.training.logits import targets
        from surgery.training.losses import divergence_sum, next_token_sum

        def distilled(part: slice, student: torch.Tensor, taught: torch.Tensor) -> torch.Tensor:
            predicted = targets(batch, part)
            loss = self.share * divergence_sum(student, taught, predicted, self.temperature)
            if self.share < 1:
                loss = loss + (1 - self.share) * next_token_sum(student, predicted)
            return loss

        return _beside_teacher(model, batch, teacher, distilled)


class Hold(Objective):
    """Learn the answers and keep the rest: cross-entropy of marked answers, divergence from the original elsewhere.

    Sources of kind recall and chats mark their answers. All other tokens, and whole plain texts, are held: there the
    Kullback-Leibler divergence from the original model counts, so that the text itself teaches nothing. Where the
    positions were changed for longer texts, the original model has the new positions too.
    """

    name: Literal["hold"]
    weight: PositiveFloat = Field(
        default=0.1, description="Weight of the divergence of one held token against the loss of one answer token."
    )
    needs_teacher: ClassVar[bool] = True
    keeps_positions: ClassVar[bool] = True
    logits_held: ClassVar[int] = 4

    def total(self, model: nn.Module, batch: Batch, teacher: Teacher | None = None) -> torch.Tensor:
        """Summed cross-entropy of answers plus ``weight`` times the summed divergence of held tokens, in nats."""
        from surgery.training.losses import divergence_sum, next_token_sum, split_targets

        def held(part: slice, student: torch.Tensor, taught: torch.Tensor) -> torch.Tensor:
            answers, others = split_targets(batch, part)
            divergence = divergence_sum(student, taught, others, temperature=1.0)
            return next_token_sum(student, answers) + self.weight * divergence

        return _beside_teacher(model, batch, teacher, held)


class Match(Objective):
    """Squared error between each operated attention's output and the same attention without operation and adapter.

    Each layer gets its input from the original model, so the layers learn independently. Use it as a first stage for
    forms that change the model at the start; only the attention learns.
    """

    name: Literal["match"]
    needs_teacher: ClassVar[bool] = True
    calls_modules: ClassVar[bool] = True
    least_rise: ClassVar[float] = 0.0  # squared errors have no unit to be small in

    def total(self, model: nn.Module, batch: Batch, teacher: Teacher | None = None) -> torch.Tensor:
        """Squared error, mean over layers and entries, summed over tokens."""
        from surgery.training.losses import matched_sum

        assert teacher is not None
        return matched_sum(model, batch, teacher)


OBJECTIVES: tuple[type[Objective], ...] = (NextToken, Distill, Hold, Match)

# The value of ``objective`` in a recipe.
if TYPE_CHECKING:
    AnyObjective: TypeAlias = Objective
else:
    AnyObjective = Annotated[reduce(or_, OBJECTIVES), Field(discriminator="name")]
