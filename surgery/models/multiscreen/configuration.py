"""The configuration of a Multiscreen model."""

from __future__ import annotations

from typing import Any

from transformers import PretrainedConfig


class MultiscreenConfig(PretrainedConfig):
    """Sizes and variant of a Multiscreen model.

    Args:
        vocab_size: number of tokens.
        hidden_size: width of the hidden states.
        num_hidden_layers: number of layers.
        num_attention_heads: heads (tiles) per layer.
        key_dim: size of a query and a key; at least 2.
        value_dim: size of a value and a gate.
        window_threshold: windows of this many tokens or more have no rotary position.
        max_position_embeddings: the trained length.
        infinite_windows: whether at inference a window beyond the trained length is infinite, as in the paper. Some
            public code leaves windows as they are; its checkpoints are read with False.
        wrapped_positions: whether a position at or beyond the trained length is taken modulo the window. The paper does
            not; some public code does, and its checkpoints are read with True.
        variant: ``v1``: acceptance width 1 / (exp(x) + 1); ``v3``: sigmoid(x). Both are the same up to the sign of x.

    Raises:
        ValueError: an unknown variant, or keys of fewer than two dimensions.
    """

    model_type = "multiscreen"
    keys_to_ignore_at_inference = ["cache", "past_key_values"]  # noqa: RUF012 (as transformers declares it)

    def __init__(
        self,
        vocab_size: int = 50_257,
        hidden_size: int = 64,
        num_hidden_layers: int = 8,
        num_attention_heads: int = 8,
        key_dim: int = 16,
        value_dim: int = 64,
        window_threshold: int = 256,
        max_position_embeddings: int = 1024,
        variant: str = "v3",
        infinite_windows: bool = True,
        wrapped_positions: bool = False,
        use_cache: bool = True,
        bos_token_id: int | None = None,
        eos_token_id: int | None = None,
        pad_token_id: int | None = None,
        **kwargs: Any,
    ) -> None:
        if variant not in ("v1", "v3"):
            raise ValueError(f"unknown variant {variant!r}; known are 'v1' and 'v3'")
        if key_dim < 2:
            raise ValueError(f"key_dim {key_dim}: the position rotates two dimensions")
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.num_key_value_heads = num_attention_heads
        self.key_dim = key_dim
        self.value_dim = value_dim
        self.head_dim = key_dim
        self.window_threshold = window_threshold
        self.max_position_embeddings = max_position_embeddings
        self.variant = variant
        self.infinite_windows = infinite_windows
        self.wrapped_positions = wrapped_positions
        self.use_cache = use_cache
        self.bos_token_id = bos_token_id
        self.eos_token_id = eos_token_id
        self.pad_token_id = pad_token_id
        # The head is the embedding itself, at unit length: there is no second tensor to tie.
        kwargs["tie_word_embeddings"] = False
        super().__init__(**kwargs)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As transformers, except that a keyword cannot give a checkpoint another variant.

        Raises:
            ValueError: the variant is not that of the checkpoint, whose learned numbers would get the wrong sign.
        """
        own = config_dict.get("variant", "v3")
        if kwargs.get("variant", own) != own:
            raise ValueError(f"the checkpoint has the variant {own!r}; load it, and call change_variant on the model")
        return super().from_dict(config_dict, **kwargs)
