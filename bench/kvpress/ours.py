"""The side of a screened model, and of the source: prompt and continuation with the windowed cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from bench.kvpress.case import Case, scores, unfinished, write_result


def run(model_path: Path, label: str, cases: list[Case], work: Path) -> None:
    """Results of all cases that have none yet."""
    from surgery.loading import RunOptions, load_model

    todo = list(unfinished(cases, work, label))
    if not todo:
        return
    model: Any = load_model(model_path, RunOptions(dtype="float32"))
    model.config.windowed_cache = True  # a model without windows ignores it
    with torch.no_grad():
        for case, place in todo:
            write_result(place, [{"press": label, **one_case(model, case)}])


def one_case(model: Any, case: Case) -> dict[str, Any]:
    """Scores of a case, and the share of the cache that stays after the prompt."""
    from surgery.loading.caches import borrowed, cache_of, with_cache
    from surgery.loading.head import last_logits_only

    out = model(input_ids=torch.tensor([case.prompt]), use_cache=True, **last_logits_only(model))
    cache = cache_of(out)

    def logits_of(tokens: torch.Tensor) -> torch.Tensor:
        with borrowed(cache) as lent:
            logits: torch.Tensor = model(input_ids=tokens, **with_cache(lent)).logits[0]
        return logits

    config = model.config
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    whole = 2 * config.num_hidden_layers * config.num_key_value_heads * size * len(case.prompt) * 4
    held = cache.nbytes() if hasattr(cache, "nbytes") else whole
    return {"share": held / whole, **scores(case, logits_of)}
