# Copyright 2026 The surgery authors. Licensed under the Apache License, Version 2.0.
"""The modelling code of a checkpoint with operated attention. It travels beside the weights.

It needs torch and transformers only, and reads everything about the model from the block ``surgery`` of config.json.
The files named below are the same in every checkpoint with the same operations. How it works:

1. ``Surgery<X>`` is a subclass of transformers' own class ``<X>`` (``SurgeryLlamaForCausalLM`` of
   ``LlamaForCausalLM``). No family's code is copied.
2. The base model's ``forward`` works out n, the number of keys that each query may attend to, and passes it down.
3. Each attention module with an operation becomes a subclass of itself. Its ``forward`` is the family's own bytecode,
   which finds a wrapper where it looks up the attention backend. The wrapper lets operations scale the query, and
   calls the backend (sdpa, eager, flash, flex, or a serving engine's) unless an operation attends itself.
"""

from __future__ import annotations

from surgery.runtime.attention import operated_attention
from surgery.runtime.models import class_for, lock, unlock
from surgery.runtime.operation import IN_CONFIG_ALONE, OperationModule
from surgery.runtime.visible_keys import count_visible_keys

__all__ = ["IN_CONFIG_ALONE", "OperationModule", "count_visible_keys", "lock", "operated_attention", "unlock"]

# The operations of this checkpoint follow.


def __getattr__(name: str) -> type:
    return class_for(name)
