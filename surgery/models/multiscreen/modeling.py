"""Multiscreen as a model of transformers; the equations are those of "Screening Is Enough" (arXiv 2604.01178)."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812 (the usual name)
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from .cache import MultiscreenCache
from .configuration import MultiscreenConfig
from .groups import PADDING, Heads
from .tiles import accepted_sum, accepted_sum_of_groups

# The keyword of the cache, since transformers 5.24 and before.
_CACHE = "cache" if "cache" in CausalLMOutputWithPast.__dataclass_fields__ else "past_key_values"
_LARGEST_EXPONENT = 30.0  # exp overflows in float32 beyond 88


class Places(NamedTuple):
    """Where the tokens of a forward pass stand.

    Attributes:
        positions: (batch, tokens), each within its document.
        documents: (batch, tokens) in float32; ``PADDING`` for padding.
        alone: whether every row is one document from its first token, without padding.
    """

    positions: Tensor
    documents: Tensor
    alone: bool


class MultiscreenTiles(nn.Module):
    """The tiles of one layer, one per head."""

    def __init__(self, config: MultiscreenConfig, layer_idx: int) -> None:
        super().__init__()
        self.config, self.layer_idx = config, layer_idx
        heads, width = config.num_attention_heads, config.hidden_size
        self.q_proj = nn.Linear(width, heads * config.key_dim, bias=False)
        self.k_proj = nn.Linear(width, heads * config.key_dim, bias=False)
        self.v_proj = nn.Linear(width, heads * config.value_dim, bias=False)
        self.g_proj = nn.Linear(width, heads * config.value_dim, bias=False)
        self.o_proj = nn.Linear(heads * config.value_dim, width, bias=False)
        self.log_window = nn.Parameter(torch.zeros(heads))
        self.acceptance = nn.Parameter(torch.zeros(heads))
        self.log_output_scale = nn.Parameter(torch.zeros(heads))

    def heads(self) -> Heads:
        """Inverse acceptance widths and windows; at inference, a window beyond the trained length is infinite."""
        sign = 1 if self.config.variant == "v1" else -1
        tightness = 1 + (sign * self.acceptance.float()).clamp(max=_LARGEST_EXPONENT).exp()
        window = self.log_window.float().exp() + 1
        if self.config.infinite_windows and not self.training:
            window = torch.where(window > self.config.max_position_embeddings, math.inf, window)
        return Heads(tightness, window)

    def forward(self, hidden: Tensor, places: Places, cache: Any = None) -> Tensor:
        """The sum of the tiles.

        Args:
            hidden: (batch, tokens, width).
            places: of the tokens.
            cache: a :class:`MultiscreenCache`, another cache of transformers, which then keeps all keys, or None.
        """
        learned = self.heads()
        query, key = (
            self._rotated(F.normalize(self._split(projection(hidden)).float(), dim=-1), places, learned.window)
            for projection in (self.q_proj, self.k_proj)
        )
        value = F.normalize(self._split(self.v_proj(hidden)).float(), dim=-1)
        if isinstance(cache, MultiscreenCache):
            parts = cache.extend(self.layer_idx, key, value, places.documents, learned)
            total = accepted_sum_of_groups(query, parts, None if cache.alone else places.documents, learned)
        else:
            total = self._sum(query, key, value, places, cache, learned)
        # tanh(|h|)/|h|, and 1 at h = 0, with a finite gradient.
        length = total.square().sum(-1, keepdim=True).clamp_min(1e-24).sqrt()
        total = total * (length.tanh() / length)
        gate = F.silu(self._split(self.g_proj(hidden)).float()).tanh()
        scaled = total * gate * self.log_output_scale.float().exp()[:, None, None]
        return self.o_proj(scaled.transpose(1, 2).flatten(2).to(hidden.dtype))

    def _sum(self, query: Tensor, key: Tensor, value: Tensor, places: Places, cache: Any, learned: Heads) -> Tensor:
        """The sum over these keys and those of a cache that keeps all."""
        documents = key_documents = places.documents
        if cache is not None:  # a key's document travels behind its last dimension
            marked = torch.cat((key, documents[:, None, :, None].expand(*key.shape[:3], 1)), dim=-1)
            marked, value = cache.update(marked, value, self.layer_idx)
            key, key_documents = marked[..., :-1], marked[:, 0, :, -1]
        alone = places.alone and cache is None
        return accepted_sum(query, key, value, None if alone else (documents, key_documents), learned)

    def _split(self, projected: Tensor) -> Tensor:
        return projected.unflatten(-1, (self.config.num_attention_heads, -1)).transpose(1, 2)

    def _rotated(self, states: Tensor, places: Places, window: Tensor) -> Tensor:
        """MiPE: the first two dimensions turn by pi i g(w) / w, in float32, with absolute positions by default."""
        limit = self.config.window_threshold
        share = torch.where(window < limit, (torch.cos(math.pi * window.clamp(max=limit) / limit) + 1) / 2, 0.0)
        positions = places.positions[:, None, :].float()
        if self.config.wrapped_positions:
            beyond = positions >= self.config.max_position_embeddings
            positions = torch.where(beyond, positions.remainder(window[:, None]), positions)
        angle = math.pi * (share / window)[:, None] * positions
        cos, sin = angle.cos(), angle.sin()
        first, second = states[..., 0], states[..., 1]
        turned = torch.stack((first * cos - second * sin, first * sin + second * cos), dim=-1)
        return torch.cat((turned, states[..., 2:]), dim=-1)


class MultiscreenLayer(GradientCheckpointingLayer):
    """One layer: the hidden states plus its tiles. There is no MLP and no norm."""

    def __init__(self, config: MultiscreenConfig, layer_idx: int) -> None:
        super().__init__()
        self.tiles = MultiscreenTiles(config, layer_idx)

    def forward(self, hidden: Tensor, places: Places, cache: Any = None) -> Tensor:
        """(batch, tokens, width) -> the same shape."""
        return hidden + self.tiles(hidden, places, cache)


class MultiscreenPreTrainedModel(PreTrainedModel):
    """What transformers knows of the model."""

    config_class = MultiscreenConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["MultiscreenLayer"]  # noqa: RUF012 (as transformers declares it)
    _keep_in_fp32_modules_strict = {  # noqa: RUF012 (a bfloat16 number would not move by a step of the optimizer)
        "log_window",
        "acceptance",
        "log_output_scale",
        "log_embedding_scale",
        "log_logit_scale",
    }

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """The start values of the paper."""
        config = self.config
        draw = nn.init.normal_
        if isinstance(module, MultiscreenTiles):
            for projection, std in (
                (module.q_proj, 0.1 / math.sqrt(config.key_dim)),
                (module.k_proj, 0.1 / math.sqrt(config.key_dim)),
                (module.v_proj, 0.1 / math.sqrt(config.value_dim)),
                (module.g_proj, 0.1),
                (module.o_proj, 0.1 / math.sqrt(config.hidden_size)),
            ):
                if not getattr(projection.weight, "_is_hf_initialized", False):
                    draw(projection.weight, std=std)
            heads = config.num_attention_heads
            self._start(module.log_window, torch.linspace(0, math.log(config.window_threshold), heads))
            self._start(module.acceptance, torch.zeros(heads))
            scale = -math.log(heads * config.num_hidden_layers) / 2
            self._start(module.log_output_scale, torch.full((heads,), scale))
        elif isinstance(module, nn.Embedding):
            if not getattr(module.weight, "_is_hf_initialized", False):
                draw(module.weight, std=0.1 / math.sqrt(config.hidden_size))
        elif isinstance(module, MultiscreenModel):
            self._start(module.log_embedding_scale, torch.zeros(1))
        elif isinstance(module, MultiscreenForCausalLM):
            self._start(module.log_logit_scale, torch.full((1,), math.log(config.hidden_size) / 2))

    @staticmethod
    def _start(parameter: Tensor, value: Tensor) -> None:
        if not getattr(parameter, "_is_hf_initialized", False):
            parameter.copy_(value)


class MultiscreenModel(MultiscreenPreTrainedModel):
    """The embedding at unit length and the layers."""

    def __init__(self, config: MultiscreenConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.log_embedding_scale = nn.Parameter(torch.zeros(1))
        self.layers = nn.ModuleList(MultiscreenLayer(config, index) for index in range(config.num_hidden_layers))
        self.gradient_checkpointing = False
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        cache: Any = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Hidden states (batch, tokens, width).

        Args:
            input_ids: (batch, tokens).
            attention_mask: (batch, keys), 0 for padding.
            position_ids: (batch, tokens); where they restart, a new document begins.
            past_key_values: the cache, under its older name.
            inputs_embeds: rows of the embedding in place of ``input_ids``; they are brought to unit length.
            cache: the cache.

        Raises:
            ValueError: both or none of ``input_ids`` and ``inputs_embeds``, or a mask that is not two-dimensional.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("pass either input_ids or inputs_embeds")
        if attention_mask is not None and attention_mask.dim() != 2:
            raise ValueError(f"attention_mask has {attention_mask.dim()} dimensions; Multiscreen takes (batch, keys)")
        rows = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        hidden = (F.normalize(rows.float(), dim=-1) * self.log_embedding_scale.float().exp()).to(rows.dtype)
        cache = past_key_values if cache is None else cache
        use_cache = self.config.use_cache if use_cache is None else use_cache
        if cache is None and use_cache and not (self.training or torch.compiler.is_compiling()):
            cache = MultiscreenCache(self.config.num_hidden_layers)
        past = 0 if cache is None else int(cache.get_seq_length())
        places = _places(attention_mask, position_ids, past, rows)
        if isinstance(cache, MultiscreenCache):
            cache.alone = cache.alone and places.alone
        for layer in self.layers:
            hidden = layer(hidden, places, cache)
        return BaseModelOutputWithPast(last_hidden_state=hidden, **{_CACHE: cache})


class MultiscreenForCausalLM(MultiscreenPreTrainedModel, GenerationMixin):
    """Multiscreen with logits exp(s) x E^T, where E is the embedding at unit length."""

    def __init__(self, config: MultiscreenConfig) -> None:
        super().__init__(config)
        self.model = MultiscreenModel(config)
        self.log_logit_scale = nn.Parameter(torch.zeros(1))
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        cache: Any = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits (batch, tokens, vocabulary), and the loss with labels; see :class:`MultiscreenModel`."""
        outputs = self.model(
            input_ids, attention_mask, position_ids, past_key_values, inputs_embeds, use_cache, cache=cache
        )
        hidden = outputs.last_hidden_state
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        hidden = hidden[:, kept]
        embedding = F.normalize(self.model.embed_tokens.weight.float(), dim=-1).to(hidden.dtype)
        logits = F.linear(hidden, embedding) * self.log_logit_scale.exp().to(hidden.dtype)
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(loss=loss, logits=logits, **{_CACHE: outputs.get(_CACHE)})

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        """``generate`` leaves the cache to the model, which makes a :class:`MultiscreenCache`."""
        return False

    def new_cache(self) -> MultiscreenCache:
        """An empty cache, which keeps of each head the keys within its window."""
        return MultiscreenCache(self.config.num_hidden_layers)

    def init_continuous_batching(self, *args: Any, **kwargs: Any) -> Any:
        """Refuse what transformers would begin and then fail on, request after request.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError(
            "Multiscreen cannot run in continuous batching: its pages and masks are those of attention backends, and "
            "Multiscreen has none; generate from padded batches instead"
        )

    @torch.no_grad()
    def change_variant(self, variant: str) -> None:
        """Express the same model in the other variant: the learned acceptance changes its sign."""
        if variant not in ("v1", "v3"):
            raise ValueError(f"unknown variant {variant!r}; known are 'v1' and 'v3'")
        if variant != self.config.variant:
            for layer in self.model.layers:
                layer.tiles.acceptance.neg_()
            self.config.variant = variant


def _places(mask: Tensor | None, position_ids: Tensor | None, past: int, rows: Tensor) -> Places:
    """Positions and documents of the tokens.

    A document's number is the index of its first token in the row: index minus position. It stays the same when a
    cache is continued, and padding before the first token only shifts it.
    """
    batch, tokens = rows.shape[:2]
    index = torch.arange(past, past + tokens, device=rows.device).expand(batch, -1)
    if mask is None and position_ids is None:
        return Places(index, torch.zeros_like(index, dtype=torch.float32), not torch.compiler.is_compiling())
    if position_ids is not None:
        positions = position_ids.expand(batch, -1)
        documents = (index - positions).float()
    else:
        assert mask is not None
        positions = (mask.long().cumsum(-1) - 1).clamp_min(0)[:, past : past + tokens]
        documents = mask.long().argmax(-1, keepdim=True).expand(-1, tokens).float()
    if mask is not None:
        documents = documents.masked_fill(~mask[:, past : past + tokens].bool(), PADDING)
    # A look at the documents waits for the device, once for all layers; it would break a graph.
    alone = not torch.compiler.is_compiling() and not bool(documents.any())
    return Places(positions, documents, alone)
