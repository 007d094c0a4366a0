"""A trained adapter as PEFT keeps it, the operation's parameters among it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from surgery.recovery.preparing import is_operation, operation_parameters


class Adapter:
    """A trained adapter, taken before it is merged."""

    def __init__(self, model: Any, base: str) -> None:
        """Take the adapter's state.

        Raises:
            RuntimeError: it lacks trained parameters of the operation.
        """
        from peft import get_peft_model_state_dict

        self._model, self._base = model, base
        state = get_peft_model_state_dict(model)
        self._state = {name: tensor.detach().to("cpu").clone().contiguous() for name, tensor in state.items()}
        trained = operation_parameters(model)
        held = [name for name in self._state if is_operation(name)]
        if len(held) != len(trained):
            raise RuntimeError(f"the adapter holds {len(held)} of {len(trained)} parameters of the operation")

    def write(self, folder: Path) -> None:
        """As PEFT saves it, with the base by name rather than by path."""
        from safetensors.torch import save_file

        folder.mkdir()
        config = self._config()
        save_file(self._state, folder / "adapter_model.safetensors", metadata={"format": "pt"})
        config.save_pretrained(str(folder))

    def _config(self) -> Any:
        import copy

        config = copy.deepcopy(self._model.peft_config["default"])
        config.base_model_name_or_path = self._base
        config.inference_mode = True
        return config
