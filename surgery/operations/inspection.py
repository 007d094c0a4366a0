"""``inspect``: what a model's attention is, layer by layer, and what can be done to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from surgery.anatomy import FAMILIES, REFUSED, Anatomy, AttentionLayer, Family, read_anatomy
from surgery.anatomy.reading import MODEL_TYPE_PREFIX
from surgery.checkpoint import Checkpoint, open_checkpoint, resolve
from surgery.operations import OPERATIONS

Choice = Literal["default", "if asked", "never"]


@dataclass(frozen=True)
class Inspection:
    """The anatomy of a model and, for each operation, why a layer would be skipped (None where it applies).

    Attributes:
        name, commit: as given, and the commit of a hub model.
        folder: where it lies on the disk.
        anatomy: layers, sizes, RoPE, dtypes.
        applies: for each operation, for each layer, the reason against it or None.
        ways: for each operation, for each layer, the option of `surgery convert` that has it applied in spite of that
            reason (``--layers sliding``); None where it applies by itself, and where nothing can be done.
    """

    name: str
    commit: str | None
    folder: Path
    anatomy: Anatomy
    applies: Mapping[str, tuple[str | None, ...]]
    ways: Mapping[str, tuple[str | None, ...]]

    @property
    def layers(self) -> tuple[AttentionLayer, ...]:
        """The attention layers."""
        return self.anatomy.layers

    def choice(self, operation: str, layer: int) -> Choice:
        """Whether an operation is performed on a layer unless told otherwise, only if that is asked for, or never."""
        if self.applies[operation][layer] is None:
            return "default"
        return "never" if self.ways[operation][layer] is None else "if asked"

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        anatomy = self.anatomy
        return {
            "name": self.name,
            "commit": self.commit,
            "family": anatomy.family.model_type,
            "operations_done": [dict(options) for options in (*anatomy.source_operations, *anatomy.operations)],
            "trained_length": anatomy.trained_length,
            "positions": anatomy.positions,
            "rope": {rope.label or "all": dict(rope.parameters) for rope in anatomy.ropes},
            "tied_embeddings": anatomy.tied_embeddings,
            "dtypes": dict(anatomy.dtypes),
            "parameters": anatomy.parameters,
            "bytes": anatomy.bytes,
            "shards": anatomy.shards,
            "layers": [
                {
                    **asdict(layer),
                    "operations": {name: reasons[layer.index] for name, reasons in self.applies.items()},
                    "choice": {name: self.choice(name, layer.index) for name in self.applies},
                }
                for layer in anatomy.layers
            ],
        }


def inspect(model: str | Path, *, revision: str | None = None, allow_unverified: bool = False) -> Inspection:
    """Inspect a model folder or hub id, of any size, without reading a weight.

    Args:
        model: folder or hub id.
        revision: branch, tag or commit of a hub model.
        allow_unverified: show what a probe makes of a family that the table does not have; imports torch.

    Raises:
        SurgeryError: the folder is missing, broken or of a family that is not supported.
    """
    source = resolve(model, revision)
    checkpoint = open_checkpoint(source)
    anatomy = read_anatomy(checkpoint, family=unverified_family(checkpoint) if allow_unverified else None)
    done = converted_already(anatomy)
    applies: dict[str, tuple[str | None, ...]] = {}
    ways: dict[str, tuple[str | None, ...]] = {}
    for name, operation in OPERATIONS.items():
        if refused := done or anatomy.family.without.get(name):
            applies[name], ways[name] = (refused,) * len(anatomy.layers), (None,) * len(anatomy.layers)
            continue
        applies[name] = tuple(operation.obstacle(layer, anatomy) for layer in anatomy.layers)
        ways[name] = tuple(
            operation.way(layer, anatomy) if reason else None
            for layer, reason in zip(anatomy.layers, applies[name], strict=True)
        )
    return Inspection(source.name, source.commit, source.folder, anatomy, applies, ways)


def converted_already(anatomy: Anatomy) -> str | None:
    """Why nothing more is done to this checkpoint, or None.

    A source is plain, or was converted in its config alone: then it still is a plain model of its family.
    """
    done = [str(options.get("name")) for options in anatomy.operations]
    if all(name in OPERATIONS and OPERATIONS[name].in_config_alone for name in done):
        return None
    return f"converted already ({', '.join(done)})"


def unverified_family(checkpoint: Checkpoint) -> Family | None:
    """What a probe makes of a family that the table neither has nor refuses; None for one that it does.

    Raises:
        PlanRefusedError: the probe finds no attention that could be operated on.
    """
    model_type = str(checkpoint.config.get("model_type"))
    if model_type in FAMILIES or model_type in REFUSED or model_type.startswith(MODEL_TYPE_PREFIX):
        return None
    from surgery.anatomy.probing import probe

    return probe(checkpoint)
