"""The base class of architectures: models that `surgery new` makes from random weights.

To add an architecture, make a folder beside this file and add one line to ``ARCHITECTURES`` in ``catalogue.py``:

- ``options.py``: the sizes, a subclass of :class:`ArchitectureOptions`. Its fields are the flags of `surgery new NAME`.
- ``architecture.py``: a subclass of :class:`Architecture`. It imports torch and transformers inside functions only.
- the configuration and the model, if transformers has none; these files travel with the checkpoint, so they import
  torch and transformers only. ``own_model`` tells the commands about them (:class:`surgery.models.own_model.OwnModel`).
- a recipe ``recipes/NAME-pretrain.yaml``, which the command names as the next step.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from surgery.models.own_model import OwnModel
    from surgery.operations import OperationOptions


@dataclass(frozen=True)
class Vocabulary:
    """The vocabulary of a new model.

    Attributes:
        size: number of tokens: the rows of the embedding.
        special_tokens: token ids as config.json names them, those that there are: ``bos_token_id``, ``eos_token_id``,
            ``pad_token_id``.
    """

    size: int
    special_tokens: Mapping[str, int]

    @property
    def token_ids(self) -> dict[str, Any]:
        """All three special tokens for config.json; an absent one is None."""
        return {name: self.special_tokens.get(name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}


class ArchitectureOptions(BaseModel):
    """The options of every architecture: the trained length and the seed."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    length: Annotated[int, Field(ge=2, le=2**24)] = Field(
        default=1024, description="Tokens per sequence that the model will be trained with."
    )
    seed: NonNegativeInt = Field(default=0, description="Seed of the random weights.")


class Architecture(ABC):
    """One kind of model that can be made from random weights.

    Attributes:
        name: as in `surgery new NAME`.
        summary: one line for listings.
        options: the schema of its sizes.
        own_model: the model class, if transformers has none.
    """

    name: str
    summary: str
    options: type[ArchitectureOptions]
    own_model: OwnModel | None = None

    @abstractmethod
    def sizes(self, options: Any) -> Mapping[str, str]:
        """The sizes in words, for plans and cards: label -> text."""

    @abstractmethod
    def count_parameters(self, options: Any, vocabulary_size: int) -> int:
        """The number of parameters; a tied embedding counts once. Imports no torch.

        Raises:
            UsageError: the options do not fit together.
        """

    @abstractmethod
    def build(self, options: Any, vocabulary: Vocabulary) -> PreTrainedModel:
        """A model with random weights in float32; the caller has set the seed."""

    def operations(self, options: Any) -> Sequence[OperationOptions]:
        """Operations that the model has from the start; they are performed on what :meth:`build` made."""
        return ()
