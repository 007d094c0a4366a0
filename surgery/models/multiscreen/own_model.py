"""Multiscreen for the commands that inspect, verify and load it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from surgery.checkpoint import Checkpoint
from surgery.checkpoint.numbers import read_numbers
from surgery.models.own_model import LearnedLayers, OwnModel, code_of

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

_CODE = ("blocks", "cache", "configuration", "groups", "modeling", "tiles")


class MultiscreenModelClass(OwnModel):
    """``MultiscreenForCausalLM``."""

    model_type = "multiscreen"
    presentations_without = {"static cache": "the model's cache keeps of each head its window"}  # noqa: RUF012

    def classes(self) -> tuple[type[PretrainedConfig], type[PreTrainedModel]]:
        """The classes; ``auto_map`` of what they save names the code."""
        from surgery.models.multiscreen.configuration import MultiscreenConfig
        from surgery.models.multiscreen.modeling import MultiscreenForCausalLM

        MultiscreenConfig.register_for_auto_class()
        MultiscreenForCausalLM.register_for_auto_class("AutoModelForCausalLM")
        return MultiscreenConfig, MultiscreenForCausalLM

    def code(self) -> Mapping[str, bytes]:
        """The files as they are."""
        return code_of(__package__, _CODE)

    def facts(self, checkpoint: Checkpoint) -> Mapping[str, str]:
        """Sizes, the variant and the trained length."""
        config = checkpoint.config
        length = config["max_position_embeddings"]
        longer = "is infinite" if config.get("infinite_windows", True) else "stays as it is"
        return {
            "variant": str(config["variant"]),
            "layers": f"{config['num_hidden_layers']}, without MLP and norm",
            "heads": f"{config['num_attention_heads']} gated tiles, keys of {config['key_dim']}, values of "
            f"{config['value_dim']}",
            "width": f"{config['hidden_size']}; the head is the embedding at unit length",
            "trained length": f"{length}; at inference a longer window {longer}",
            "positions": f"wrapped from {length} on" if config.get("wrapped_positions") else "absolute",
        }

    def layers(self, checkpoint: Checkpoint) -> LearnedLayers:
        """Windows and acceptance of the heads of each layer."""
        config = checkpoint.config
        length, limit = config["max_position_embeddings"], config["window_threshold"]
        sign = -1 if config["variant"] == "v1" else 1
        rows, values = [], []
        for layer in range(config["num_hidden_layers"]):
            tiles = f"model.layers.{layer}.tiles"
            windows = [math.exp(number) + 1 for number in read_numbers(checkpoint, f"{tiles}.log_window").tolist()]
            learned = read_numbers(checkpoint, f"{tiles}.acceptance").tolist()
            least = [1 - 1 / (1 + math.exp(-sign * number)) for number in learned]
            finite = [window for window in windows if window <= length or not config.get("infinite_windows", True)]
            rows.append(
                (
                    f"{min(finite):.0f} to {max(finite):.0f}" if finite else "-",
                    f"{len(windows) - len(finite)} of {len(windows)}",
                    f"{sum(window < limit for window in windows)} of {len(windows)}",
                    f"{min(least):.2f} to {max(least):.2f}",
                )
            )
            values.append({"layer": layer, "windows": windows, "least_similarity": least})
        columns = ("finite windows", "infinite", "with positions", "accepts a similarity from")
        return LearnedLayers(columns, tuple(rows), tuple(values))

    @contextmanager
    def revealed(self, model: Any) -> Iterator[None]:
        """Every head accepts many keys, each head by another measure."""
        import torch

        heads = [module.acceptance for module in model.modules() if hasattr(module, "acceptance")]
        before = [parameter.detach().clone() for parameter in heads]
        sign = -1 if model.config.variant == "v1" else 1
        generator = torch.Generator().manual_seed(0)
        try:
            with torch.no_grad():
                for parameter in heads:  # a width of 0.73 to 0.95: similarities from 0.05 to 0.27 on
                    parameter.copy_(sign * (1 + 2 * torch.rand(parameter.shape, generator=generator)))
            yield
        finally:
            with torch.no_grad():
                for parameter, value in zip(heads, before, strict=True):
                    parameter.copy_(value)
