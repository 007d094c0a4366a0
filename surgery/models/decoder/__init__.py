"""A small Llama-like decoder with softmax attention: transformers' own ``LlamaForCausalLM``."""

from surgery.models.decoder.architecture import DecoderArchitecture
from surgery.models.decoder.options import DecoderOptions

__all__ = ["DecoderArchitecture", "DecoderOptions"]
