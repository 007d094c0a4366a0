"""A trained adapter in PEFT's format, with the parameters of the operations in it."""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from surgery.checkpoint import Checkpoint, Source, sha256_json, tensor_bytes, write_json
from surgery.operations.parameters import is_operation

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
BASE_RECORD = "base.json"


def base_identity(checkpoint: Checkpoint) -> str:
    """Hash of a base: its config, the names, dtypes and shapes of its tensors, and the parameters of the operations.

    The weights are not part of it, so that they need not be read.
    """
    tensors = {name: [info.dtype, list(info.shape)] for name, info in checkpoint.tensors.items()}
    numbers = {
        name: bytes(tensor_bytes(checkpoint.folder / info.shard, info)).hex()
        for name, info in checkpoint.tensors.items()
        if is_operation(name)
    }
    return sha256_json({"config": checkpoint.config, "tensors": tensors, "numbers": numbers})


class Adapter:
    """A trained adapter, copied before the merge."""

    def __init__(self, model: Any, trained: Sequence[str]) -> None:
        """Copy the state of the adapter.

        Args:
            model: with the adapter; it is not kept.
            trained: names of all parameters that were trained.

        Raises:
            RuntimeError: trained parameters of an operation are missing in it.
        """
        from peft import get_peft_model_state_dict

        self._config = copy.deepcopy(model.peft_config["default"])
        self._config.inference_mode = True
        state = get_peft_model_state_dict(model)
        self._state = {name: tensor.detach().to("cpu").clone().contiguous() for name, tensor in state.items()}
        held = [name for name in self._state if is_operation(name)]
        wanted = [name for name in trained if is_operation(name)]
        if len(held) < len(wanted):
            raise RuntimeError(f"the adapter holds {len(held)} of {len(wanted)} parameters of the operation")

    def write(self, folder: Path, source: Source, checkpoint: Checkpoint, base: str | None = None) -> None:
        """Write PEFT's files and the record of the base, which is named by ``base`` or else by its own name.

        Args:
            folder: for the files.
            source: the base.
            checkpoint: of the base.
            base: how PEFT finds the base.

        For a local base the record has the relative path from the adapter, so that it still holds after both are moved
        together. The path is also right for the final folder, because a staged output lies beside it.
        """
        from safetensors.torch import save_file

        folder.mkdir(exist_ok=True)
        save_file(self._state, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})
        self._config.base_model_name_or_path = base or source.name
        self._config.save_pretrained(str(folder))
        record = {"name": source.name, "commit": source.commit, "sha256": base_identity(checkpoint)}
        if source.commit is None:
            record["path"] = Path(os.path.relpath(source.folder.resolve(), folder.resolve())).as_posix()
        write_json(folder / BASE_RECORD, record)
