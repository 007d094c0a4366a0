"""The side of kvpress, in an environment of its own; see ``bench/kvpress/__main__.py``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from bench.kvpress.case import Case, scores, unfinished, write_result

CHUNK = 64  # tokens of a continuation at once where a press has masked keys: kvpress must find a key for all of them


def presses(share: float) -> dict[str, Any]:
    """The presses that keep this share of the cache, by name."""
    import kvpress

    ratio = {"compression_ratio": 1 - share}
    return {
        "knorm": kvpress.KnormPress(**ratio),
        "streaming": kvpress.StreamingLLMPress(**ratio),
        "expected attention": kvpress.ExpectedAttentionPress(**ratio),
        "SnapKV": kvpress.SnapKVPress(**ratio),
        "KeyDiff": kvpress.KeyDiffPress(**ratio),
        "TOVA": kvpress.TOVAPress(**ratio),
        "LagKV": kvpress.LagKVPress(**ratio),
        "CriticalKV, SnapKV": kvpress.CriticalKVPress(kvpress.SnapKVPress(**ratio)),
        "AdaKV, SnapKV": kvpress.AdaKVPress(kvpress.SnapKVPress(**ratio)),
        "AdaKV, expected attention": kvpress.AdaKVPress(kvpress.ExpectedAttentionPress(**ratio)),
        # A constant beside the scores, which that press offers, makes those of several heads more alike.
        "AdaKV, expected attention, epsilon": kvpress.AdaKVPress(kvpress.ExpectedAttentionPress(**ratio, epsilon=0.01)),
    }


def run(model_path: Path, shares: list[float], cases: list[Case], work: Path, check: bool) -> None:
    """Results of all cases that have none yet; ``check``: the first case also by each press alone."""
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(
        model_path, dtype=torch.float32, attn_implementation="sdpa", local_files_only=True
    )
    model.eval()
    named = {(name, share): press for share in shares for name, press in presses(share).items()}
    with torch.no_grad():
        if check:
            compare(model, cases[0], named)
            return
        for case, place in unfinished(cases, work, "kvpress"):
            write_result(place, one_case(model, case, named))


def several(model: Any, named: dict[Any, Any]) -> Any:
    """A press that lets each of ``named`` compress the same prompt, and keeps what each leaves in ``kept``.

    Presses compress a layer after its attention ran on the whole prompt, so that one pass over it serves all.
    """
    from kvpress.presses.base_press import BasePress

    class Several(BasePress):  # type: ignore[misc]
        def __init__(self) -> None:
            self.kept: dict[Any, list[tuple[Any, ...]]] = {key: [] for key in named}

        def post_init_from_model(self, model: Any) -> None:
            for press in named.values():
                press.post_init_from_model(model)

        def compress(self, module: Any, hidden: Any, keys: Any, values: Any, attentions: Any, kwargs: Any) -> Any:
            for key, press in named.items():
                module.masked_key_indices = None
                left = press.compress(module, hidden, keys, values, attentions, kwargs)
                self.kept[key].append((*left, module.masked_key_indices))
            module.masked_key_indices = None
            return keys, values

    return Several()


def one_case(model: Any, case: Case, named: dict[Any, Any]) -> list[dict[str, Any]]:
    """Scores of a case by each press, and with the whole cache."""
    from transformers import DynamicCache

    press, cache = several(model, named), DynamicCache()
    with press(model):
        model.model(input_ids=torch.tensor([case.prompt]), past_key_values=cache)
    whole = [(layer.keys, layer.values, None) for layer in cache.layers]
    rows = []
    for (name, share), layers in {("none", 1.0): whole, **press.kept}.items():
        rows.append({"press": name, "asked": share, "share": kept_share(layers, whole), **left(model, case, layers)})
    return rows


def kept_share(layers: list[Any], whole: list[Any]) -> float:
    """Keys that are left, of all; AdaKV masks keys in place of dropping them."""
    masked = sum(len(one[2][0]) for one in layers if one[2] is not None)
    kept = sum(one[0].shape[1] * one[0].shape[2] for one in layers) - masked
    return float(kept / sum(one[0].shape[1] * one[0].shape[2] for one in whole))


def left(model: Any, case: Case, layers: list[Any]) -> dict[str, Any]:
    """Scores of a case on what is left of its cache."""
    from transformers import DynamicCache

    masked = any(one[2] is not None for one in layers)
    for layer, (_, _, indices) in zip(model.model.layers, layers, strict=True):
        layer.self_attn.masked_key_indices = indices

    def logits_of(tokens: torch.Tensor) -> torch.Tensor:
        cache = DynamicCache()
        for number, (keys, values, _) in enumerate(layers):
            cache.update(keys, values, number)
        parts, place = [], len(case.prompt)
        for part in tokens.split(CHUNK if masked else tokens.shape[1], dim=1):
            places = torch.arange(place, place + part.shape[1])[None]
            parts.append(model(input_ids=part, past_key_values=cache, position_ids=places).logits[0])
            place += part.shape[1]
        return torch.cat(parts)

    try:
        return scores(case, logits_of)
    finally:
        for layer in model.model.layers:
            layer.self_attn.masked_key_indices = None


def compare(model: Any, case: Case, named: dict[Any, Any]) -> None:
    """Print each press's loss as measured here, and with the press alone in kvpress's own way."""
    from transformers import DynamicCache

    together = {(row["press"], row["asked"]): row["loss"][0] for row in one_case(model, case, named)}
    tokens = torch.tensor([case.continuations[0].tokens[:-1]])
    answer = torch.tensor(case.continuations[0].tokens[-case.continuations[0].scored :])
    places = torch.arange(len(case.prompt), len(case.prompt) + tokens.shape[1])[None]
    for key, press in named.items():
        cache, parts = DynamicCache(), []
        with press(model):
            model.model(input_ids=torch.tensor([case.prompt]), past_key_values=cache)
        for part, own in zip(tokens.split(CHUNK, dim=1), places.split(CHUNK, dim=1), strict=True):
            parts.append(model(input_ids=part, past_key_values=cache, position_ids=own).logits[0])
        alone = float(torch.nn.functional.cross_entropy(torch.cat(parts)[-len(answer) :], answer))
        print(*key, f"together {together[key]:.6f} alone {alone:.6f}", flush=True)
