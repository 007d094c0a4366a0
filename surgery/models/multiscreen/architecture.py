"""Multiscreen as an architecture of `surgery new`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from surgery.models.base import Architecture, Vocabulary
from surgery.models.multiscreen.options import MultiscreenOptions
from surgery.models.multiscreen.own_model import MultiscreenModelClass

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class MultiscreenArchitecture(Architecture):
    """Gated tiles in place of attention and MLP; the code travels with the checkpoint."""

    name = "multiscreen"
    summary = "a Multiscreen model, whose heads judge each key alone"
    options = MultiscreenOptions
    own_model = MultiscreenModelClass()

    def sizes(self, options: MultiscreenOptions) -> Mapping[str, str]:
        """Layers, heads, width, windows and the variant."""
        return {
            "layers": f"{options.psi}, each with {options.psi} heads; keys of 16, values of 64",
            "width": f"{options.psi**2}; the head is the embedding at unit length",
            "windows": f"learned, 2 to 257 tokens at the start; infinite at inference beyond {options.length}",
            "variant": options.variant,
        }

    def count_parameters(self, options: MultiscreenOptions, vocabulary_size: int) -> int:
        """Embedding, 224 psi^4 of the matrices, three numbers per head and two of the model."""
        return vocabulary_size * options.psi**2 + 224 * options.psi**4 + 3 * options.psi**2 + 2

    def build(self, options: MultiscreenOptions, vocabulary: Vocabulary) -> PreTrainedModel:
        """A model with the start values of the paper."""
        config_class: Any
        config_class, model_class = self.own_model.classes()
        config = config_class(
            vocab_size=vocabulary.size,
            hidden_size=options.psi**2,
            num_hidden_layers=options.psi,
            num_attention_heads=options.psi,
            max_position_embeddings=options.length,
            variant=options.variant,
            **vocabulary.token_ids,
        )
        return model_class(config)
