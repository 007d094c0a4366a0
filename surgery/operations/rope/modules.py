"""The modules of a model that compute cosine and sine, and the same modules with the source's parameters."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

_ATTRIBUTE = "rotary_emb"


def rotary_modules(model: torch.nn.Module) -> dict[str, torch.nn.Module]:
    """The modules that hold the frequencies of RoPE, by path (``model.rotary_emb``)."""
    return {path: module for path, module in model.named_modules() if path.rpartition(".")[2] == _ATTRIBUTE}


def source_modules(model: torch.nn.Module) -> dict[str, torch.nn.Module]:
    """A module with the RoPE of the source for each changed module, by path."""
    found: dict[str, torch.nn.Module] = {}
    for path, module in rotary_modules(model).items():
        config: Any = getattr(module, "config", None)
        block = getattr(config, "surgery", None) or {}
        options = next((options for options in block.get("operations", ()) if options["name"] == "rope"), None)
        if options is None:
            continue
        original = copy.deepcopy(config)
        original.max_position_embeddings = options["before"]["max_position_embeddings"]
        original.rope_parameters = copy.deepcopy(options["before"]["rope_parameters"])
        device = next(buffer.device for buffer in module.buffers())
        made: Any = type(module)
        found[path] = made(original).to(device).train(module.training)
    return found
