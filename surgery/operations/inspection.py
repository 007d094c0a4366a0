"""``inspect``: the attention of a model, layer by layer, and the operations that apply."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from surgery.anatomy import FAMILIES, REFUSED, Anatomy, AttentionLayer, Family, read_anatomy
from surgery.anatomy.anatomy import MODEL_TYPE_PREFIX
from surgery.checkpoint import Checkpoint, Source, load_json, open_checkpoint, resolve
from surgery.checkpoint.record import CALIBRATION_NAME
from surgery.operations import OPERATIONS
from surgery.result_table import ResultTable, ShownAsTable

Choice = Literal["default", "if asked", "never"]
# In tables.
_SHOWN = {"default": "applies"}


@dataclass(frozen=True)
class Inspection(ShownAsTable):
    """The anatomy of a model, and which operations apply to which layers.

    Attributes:
        name, commit: as given, and the commit of a hub model.
        folder: the folder of the model.
        anatomy: layers, sizes, RoPE, dtypes.
        reasons: by operation and layer: the reason why the layer is skipped by default, or None.
        options: by operation and layer: the option of `surgery convert` that includes a skipped layer
            (``--layers sliding``); None if the layer is not skipped, or if no option includes it.
    """

    name: str
    commit: str | None
    folder: Path
    anatomy: Anatomy
    reasons: Mapping[str, tuple[str | None, ...]]
    options: Mapping[str, tuple[str | None, ...]]

    @property
    def layers(self) -> tuple[AttentionLayer, ...]:
        """The attention layers."""
        return self.anatomy.layers

    def choice(self, operation: str, layer: int) -> Choice:
        """Whether an operation is performed on a layer by default, only with an option, or never."""
        if self.reasons[operation][layer] is None:
            return "default"
        return "never" if self.options[operation][layer] is None else "if asked"

    @property
    def calibration(self) -> dict[str, Any] | None:
        """Settings of the calibration that a converted checkpoint started from, and its effects; None without."""
        path = self.folder / CALIBRATION_NAME
        if not self.anatomy.operations or not path.is_file():
            return None
        record = load_json(path)
        found = {name: record.get(name) for name in ("settings", "saved", "estimated")}
        return found | ({"recall": record["recall"]} if "recall" in record else {})

    def to_table(self) -> ResultTable:
        """One row for each layer, with what each operation does there by itself."""
        rows = tuple(
            (
                *(layer.index, layer.kind, layer.heads, layer.kv_heads, layer.head_dim, layer.window),
                *(_SHOWN.get(choice := self.choice(name, layer.index), choice) for name in self.reasons),
            )
            for layer in self.layers
        )
        size = f"{self.anatomy.parameters:,} parameters, trained at {self.anatomy.trained_length:,} tokens"
        columns = ("layer", "kind", "heads", "key-value heads", "head size", "window", *self.reasons)
        return ResultTable(f"{self.name} ({self.anatomy.family.model_type})", columns, rows, (size,))

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
            **{name: value for operation in OPERATIONS.values() for name, value in operation.facts(anatomy).items()},
            "tied_embeddings": anatomy.tied_embeddings,
            "dtypes": dict(anatomy.dtypes),
            "calibration": self.calibration,
            "parameters": anatomy.parameters,
            "bytes": anatomy.bytes,
            "shards": anatomy.shards,
            "layers": [
                {
                    **asdict(layer),
                    "operations": {name: found[layer.index] for name, found in self.reasons.items()},
                    "choice": {name: self.choice(name, layer.index) for name in self.reasons},
                }
                for layer in anatomy.layers
            ],
        }


def inspect(model: str | Path, *, revision: str | None = None, allow_unverified: bool = False) -> Inspection:
    """Inspect a model folder or hub id, of any size, without reading a weight.

    Args:
        model: folder or hub id.
        revision: branch, tag or commit of a hub model.
        allow_unverified: probe a family that is not in the table; imports torch.

    Raises:
        SurgeryError: the folder is missing, broken or of a family that is not supported.
    """
    source = resolve(model, revision)
    return inspect_checkpoint(source, open_checkpoint(source), allow_unverified=allow_unverified)


def inspect_checkpoint(source: Source, checkpoint: Checkpoint, *, allow_unverified: bool = False) -> Inspection:
    """As :func:`inspect`, of a folder that was found and read."""
    anatomy = read_anatomy(checkpoint, family=unverified_family(checkpoint) if allow_unverified else None)
    done = converted_already(anatomy)
    reasons: dict[str, tuple[str | None, ...]] = {}
    options: dict[str, tuple[str | None, ...]] = {}
    for name, operation in OPERATIONS.items():
        if refused := done or operation.family_refusal(anatomy.family):
            reasons[name], options[name] = (refused,) * len(anatomy.layers), (None,) * len(anatomy.layers)
            continue
        reasons[name] = tuple(operation.reason_to_skip(layer, anatomy) for layer in anatomy.layers)
        options[name] = tuple(
            operation.option_to_include(layer, anatomy) if reason else None
            for layer, reason in zip(anatomy.layers, reasons[name], strict=True)
        )
    return Inspection(source.name, source.commit, source.folder, anatomy, reasons, options)


def converted_already(anatomy: Anatomy) -> str | None:
    """The reason why this checkpoint cannot be converted again, or None.

    A checkpoint that was converted only in its config is still a plain model of its family.
    """
    done = [str(one.get("name")) for one in anatomy.operations]
    if all(name in OPERATIONS and OPERATIONS[name].in_config_alone for name in done):
        return None
    return f"converted already ({', '.join(done)})"


def unverified_family(checkpoint: Checkpoint) -> Family | None:
    """The row of a probe, for a family that the table neither has nor refuses; else None.

    Raises:
        PlanRefusedError: the probe finds no attention of a known kind.
    """
    model_type = str(checkpoint.config.get("model_type"))
    if model_type in FAMILIES or model_type in REFUSED or model_type.startswith(MODEL_TYPE_PREFIX):
        return None
    from surgery.anatomy.probe import probe

    return probe(checkpoint)
