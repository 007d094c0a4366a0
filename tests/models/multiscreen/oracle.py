"""Multiscreen in float64, one query and one key at a time, from the equations of the paper alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def oracle(state: Mapping[str, Tensor], config: Any, tokens: Tensor, *, training: bool = False) -> Tensor:
    """The logits (tokens, vocabulary) of one row of tokens; ``state`` holds float64 tensors."""
    embedding = state["model.embed_tokens.weight"]
    unit = embedding / embedding.norm(dim=-1, keepdim=True)
    x = state["model.log_embedding_scale"].exp() * unit[tokens]
    for layer in range(config.num_hidden_layers):
        own = {name.split("tiles.")[1]: state[name] for name in state if name.startswith(f"model.layers.{layer}.")}
        x = x + sum(_tile(own, head, config, x, training) for head in range(config.num_attention_heads))
    return state["log_logit_scale"].exp() * (x @ unit.T)


def _tile(own: Mapping[str, Tensor], head: int, config: Any, x: Tensor, training: bool) -> Tensor:
    def projected(name: str, size: int) -> Tensor:
        return x @ own[f"{name}.weight"][head * size : (head + 1) * size].T

    q, k = (projected(name, config.key_dim) for name in ("q_proj", "k_proj"))
    v, g = (projected(name, config.value_dim) for name in ("v_proj", "g_proj"))
    q, k, v = (t / t.norm(dim=-1, keepdim=True) for t in (q, k, v))
    s_r = own["acceptance"][head]
    r = 1 / (s_r.exp() + 1) if config.variant == "v1" else torch.sigmoid(s_r)
    w = own["log_window"][head].exp() + 1
    infinite = config.infinite_windows and not training and w.item() > config.max_position_embeddings
    limit = config.window_threshold
    turn = 0.0 if infinite or w >= limit else math.pi * (torch.cos(math.pi * w / limit) + 1) / 2 / w

    def place(i: int) -> Any:
        wrapped = config.wrapped_positions and not infinite and i >= config.max_position_embeddings
        return i - w * int(i / w.item()) if wrapped else i

    rows = []
    for i in range(len(x)):
        total = torch.zeros(config.value_dim, dtype=torch.float64)
        for j in range(i + 1):
            if not infinite and i - j >= w:
                continue
            # A rotation of both by the angles of i and j is a rotation of the product by their difference.
            angle = torch.as_tensor(turn * (place(i) - place(j)), dtype=torch.float64)
            dot = q[i, 2:] @ k[j, 2:] + angle.cos() * (q[i, :2] @ k[j, :2])
            dot = dot + angle.sin() * (q[i, 0] * k[j, 1] - q[i, 1] * k[j, 0])
            alpha = torch.relu(1 - (1 - dot) / r) ** 2
            near = 1.0 if infinite else (torch.cos(math.pi * (j - i) / w) + 1) / 2
            total = total + alpha * near * v[j]
        norm = total.norm()
        u = total * torch.tanh(norm) / norm if norm > 0 else total * 0
        rows.append(u * torch.tanh(g[i] * torch.sigmoid(g[i])))
    out = own["o_proj.weight"][:, head * config.value_dim : (head + 1) * config.value_dim]
    return own["log_output_scale"][head].exp() * (torch.stack(rows) @ out.T)
