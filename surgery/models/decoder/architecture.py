"""The Llama-like decoder as an architecture."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from surgery.errors import UsageError
from surgery.models.base import Architecture, Vocabulary
from surgery.models.decoder.options import DecoderOptions

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class DecoderArchitecture(Architecture):
    """Softmax attention, for experiments and as the twin of other architectures."""

    name = "softmax"
    summary = "a small Llama-like model with softmax attention"
    options = DecoderOptions

    def sizes(self, options: DecoderOptions) -> Mapping[str, str]:
        """Layers, heads, widths and positions."""
        tied = "a head of its own" if options.untied else "the head is the embedding"
        return {
            "layers": f"{options.layers}, each with {options.heads} heads of {options.width // options.heads}",
            "width": f"{options.width}, MLP {options.inner_width}; {tied}",
            "positions": f"{options.length}, rotary with base {options.theta:g}",
        }

    def count_parameters(self, options: DecoderOptions, vocabulary_size: int) -> int:
        """Embedding, and for each layer four square matrices, three of the MLP, and two norms."""
        if options.width % (2 * options.heads):
            raise UsageError(
                f"--width {options.width}: {options.heads} heads need a multiple of {2 * options.heads}, because "
                "rotary positions rotate pairs of dimensions"
            )
        layer = 4 * options.width**2 + 3 * options.width * options.inner_width + 2 * options.width
        embeddings = vocabulary_size * options.width * (2 if options.untied else 1)
        return embeddings + options.layers * layer + options.width

    def build(self, options: DecoderOptions, vocabulary: Vocabulary) -> PreTrainedModel:
        """transformers' ``LlamaForCausalLM``, whose weights are drawn with deviation 0.02."""
        from transformers import LlamaConfig, LlamaForCausalLM

        # By strings, because a config of transformers has more keywords than its signature types.
        values: dict[str, Any] = {
            "vocab_size": vocabulary.size,
            "hidden_size": options.width,
            "intermediate_size": options.inner_width,
            "num_hidden_layers": options.layers,
            "num_attention_heads": options.heads,
            "num_key_value_heads": options.heads,
            "max_position_embeddings": options.length,
            "rope_parameters": {"rope_type": "default", "rope_theta": options.theta},
            "tie_word_embeddings": not options.untied,
            **vocabulary.token_ids,
        }
        return LlamaForCausalLM(LlamaConfig(**values))
