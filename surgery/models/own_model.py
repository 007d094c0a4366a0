"""What the commands need to know of a model class that this package brings, because transformers has none."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from surgery.checkpoint import Checkpoint

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


@dataclass(frozen=True)
class LearnedLayers:
    """What the layers of a model have learned, for `surgery inspect`.

    Attributes:
        columns: titles of the columns; the numbers of the layers come before them.
        rows: the cells of each layer.
        values: the same as plain values for JSON, one mapping for each layer.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    values: tuple[Mapping[str, Any], ...]


class OwnModel(ABC):
    """A model class of this package; its code travels with the checkpoint.

    Attributes:
        model_type: of config.json.
        presentations_without: presentations of `surgery verify` that the model does not have, with the reason.
    """

    model_type: str
    presentations_without: Mapping[str, str] = {}

    @abstractmethod
    def classes(self) -> tuple[type[PretrainedConfig], type[PreTrainedModel]]:
        """The classes of configuration and model; what they save names its code in config.json."""

    @abstractmethod
    def code(self) -> Mapping[str, bytes]:
        """The files of code that travel: name -> content. Imports no torch."""

    @abstractmethod
    def facts(self, checkpoint: Checkpoint) -> Mapping[str, str]:
        """Sizes and variant in words: label -> text. Imports no torch."""

    @abstractmethod
    def layers(self, checkpoint: Checkpoint) -> LearnedLayers:
        """What each layer has learned. Imports no torch.

        Raises:
            CheckpointError: a tensor is missing.
        """

    @abstractmethod
    def revealed(self, model: Any) -> AbstractContextManager[None]:
        """Learned numbers under which a wrong key shows in the logits, within a ``with`` block."""


def code_of(package: str, stems: Sequence[str]) -> dict[str, bytes]:
    """The files of a package whose code travels as it is.

    Args:
        package: for example ``surgery.models.multiscreen``; it is not imported, which would take torch.
        stems: names of the files without ``.py``.
    """
    from importlib.resources import files

    root, *folders = package.split(".")
    folder = files(root).joinpath(*folders)
    return {f"{stem}.py": folder.joinpath(f"{stem}.py").read_bytes() for stem in stems}
