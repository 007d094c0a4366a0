"""The first layers of a checkpoint as a checkpoint of its own, so that a big model can be verified on a small machine.

Only the tensors that are needed are read, and they are written to a temporary folder.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from surgery.anatomy import Anatomy
from surgery.checkpoint import (
    CONFIG_NAME,
    INDEX_NAME,
    SINGLE_NAME,
    Checkpoint,
    NewTensor,
    place_file,
    tensor_bytes,
    write_index,
    write_json,
    write_safetensors,
)


def truncate(checkpoint: Checkpoint, anatomy: Anatomy, layers: int, target: Path) -> None:
    """Write the first ``layers`` layers of a checkpoint, converted or not, to an empty folder.

    Raises:
        CheckpointError: the folder cannot be written.
    """
    target.mkdir(parents=True, exist_ok=True)
    # As the tensors on disk have it.
    prefix = anatomy.layers[0].module.partition(".0.")[0]
    of_layer = re.compile(rf"{re.escape(prefix)}\.(\d+)\.")
    kept = {}
    for name, info in checkpoint.tensors.items():
        match = of_layer.match(name)
        if match is None or int(match[1]) < layers:
            data = bytes(tensor_bytes(checkpoint.folder / info.shard, info))
            kept[name] = NewTensor(info.dtype, info.shape, data)
    write_safetensors(target / SINGLE_NAME, kept, {"format": "pt"})
    size = sum(len(tensor.data) for tensor in kept.values())
    write_index(target / INDEX_NAME, dict.fromkeys(kept, SINGLE_NAME), size)
    write_json(target / CONFIG_NAME, _truncated_config(checkpoint.config, anatomy, layers))
    for name in checkpoint.other_files:
        if "/" not in name:
            place_file(checkpoint.folder / name, target / name, "copy")


def _truncated_config(config: Mapping[str, Any], anatomy: Anatomy, layers: int) -> dict[str, Any]:
    """config.json for fewer layers: every list with one entry per layer is cut, and the operations' layers too."""
    before, family = len(anatomy.layers), anatomy.family
    own = family.text_config(config)
    cut = {
        name: value[:layers] if isinstance(value, list) and len(value) == before and name != "architectures" else value
        for name, value in own.items()
    }
    # In the family's own spelling, and in no other where both are there.
    cut.pop("num_hidden_layers", None)
    cut[family.spelling("num_hidden_layers")] = layers
    if family.text is not None and own is not config:
        cut = {**config, family.text: cut}
    block = config.get("surgery")
    if isinstance(block, Mapping):
        operations = [
            {**options, "layers": [layer for layer in options["layers"] if layer < layers]}
            for options in block["operations"]
        ]
        cut["surgery"] = {**block, "operations": operations}
    return cut
