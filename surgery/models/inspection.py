"""``inspect`` of any model: one of transformers' families, or of a model class of this package."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from surgery.checkpoint import Checkpoint, open_checkpoint, resolve
from surgery.models.catalogue import own_model
from surgery.models.own_model import LearnedLayers
from surgery.operations.inspection import Inspection, inspect_checkpoint
from surgery.result_table import ResultTable, ShownAsTable, record_table


@dataclass(frozen=True)
class OwnInspection(ShownAsTable):
    """A model of a class of this package.

    Attributes:
        name, commit: as given, and the commit of a hub model.
        checkpoint: the folder, as read.
        facts: sizes in words.
        layers: what each layer has learned.
    """

    name: str
    commit: str | None
    checkpoint: Checkpoint
    facts: Mapping[str, str]
    layers: LearnedLayers

    @property
    def dtypes(self) -> dict[str, int]:
        """Number of tensors by dtype."""
        found: dict[str, int] = {}
        for info in self.checkpoint.tensors.values():
            found[info.dtype] = found.get(info.dtype, 0) + 1
        return found

    def to_table(self) -> ResultTable:
        """Its sizes in words."""
        return record_table(self.name, self.facts)

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "name": self.name,
            "commit": self.commit,
            "family": self.checkpoint.config["model_type"],
            "facts": dict(self.facts),
            "dtypes": self.dtypes,
            "parameters": self.checkpoint.total_parameters,
            "bytes": self.checkpoint.total_bytes,
            "shards": len(self.checkpoint.shards),
            "layers": [dict(values) for values in self.layers.values],
        }


def inspect(
    model: str | Path, *, revision: str | None = None, allow_unverified: bool = False
) -> Inspection | OwnInspection:
    """Inspect a model folder or hub id, of any size, without reading a matrix.

    Args:
        model: folder or hub id.
        revision: branch, tag or commit of a hub model.
        allow_unverified: probe a family that is not in the table; imports torch.

    Raises:
        SurgeryError: the folder is missing, broken or of a family that is not supported.
    """
    source = resolve(model, revision)
    checkpoint = open_checkpoint(source)
    own = own_model(str(checkpoint.config.get("model_type")))
    if own is None:
        return inspect_checkpoint(source, checkpoint, allow_unverified=allow_unverified)
    return OwnInspection(source.name, source.commit, checkpoint, own.facts(checkpoint), own.layers(checkpoint))
