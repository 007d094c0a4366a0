"""The table and the reading of it, against what transformers' own config classes make of the same config.json."""

from __future__ import annotations

import inspect
import tomllib
from pathlib import Path
from typing import Any

import pytest

from surgery.anatomy import FAMILIES, REFUSED, Family, families, find_family, read_anatomy
from surgery.anatomy.config_locks import LOCKS, lock, unlock
from surgery.checkpoint import open_checkpoint, write_json
from surgery.errors import CheckpointError, PlanRefusedError
from surgery.runtime import base_model_of
from tests.anatomy.builders import LAYERS, SIZES_OF, bare_config, bare_source
from tests.recording import lacking

MIXED = ["full_attention", "sliding_attention", "full_attention", "full_attention"]
_QWEN_CASES: list[dict[str, Any]] = [
    {},
    {"sliding_window": 16},
    {"use_sliding_window": False, "sliding_window": 16, "max_window_layers": 0},
    {"use_sliding_window": True},
    {"use_sliding_window": True, "max_window_layers": 2},
    {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 0},
    {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1, "layer_types": MIXED},
]


def _cases(family: Family) -> list[dict[str, Any]]:
    """As it is by default, and with a short window on some layers or on all."""
    if family.sliding == "none" or family.hybrid:
        return [{}]
    slides: dict[str, Any] = {family.window or "sliding_window": 16}
    if family.window_gate:
        slides[family.window_gate] = True
    listed = {**slides, "layer_types": [name.replace("sliding", family.local) for name in MIXED]}
    if family.local_list is not None:
        rope = {family.local_list: [1, 0, 1, 1]}
        return [{}, slides, listed, {**slides, **rope}, {**slides, family.full_every_key or "": 2}]
    if family.sliding == "every":
        return [{}, {"sliding_window": 20_000}, slides, {"sliding_window": None}]
    has_rule = family.full_every is not None or family.sliding_from_key is not None or family.window_gate is not None
    return [{}, slides, listed] if has_rule else [listed]


CASES: dict[str, list[dict[str, Any]]] = {
    **{name: _cases(family) for name, family in FAMILIES.items()},
    "qwen2": _QWEN_CASES,
    "qwen3": _QWEN_CASES,
    "qwen3_moe": [{}, {"sliding_window": 16}, {"use_sliding_window": True}, {"use_sliding_window": False}],
    "gemma2": [{}, {"sliding_window": 16}, {"layer_types": MIXED}, {"sliding_window": 8192}],
    "exaone4": [{}, {"sliding_window_pattern": 3}, {"sliding_window": 16, "layer_types": MIXED}],
    "smollm3": [{}, {"use_sliding_window": True, "sliding_window": 16, "layer_types": MIXED}],
    "qwen2_moe": [{}, {"use_sliding_window": True, "max_window_layers": 2}, {"use_sliding_window": True}],
    "gemma3_text": [
        {},
        {"sliding_window_pattern": 2},
        {"sliding_window_pattern": 3, "sliding_window": 16},
        {"layer_types": MIXED},
        {"num_hidden_layers": 13},
    ],
}
ALL_CASES = [(family, changes) for family, cases in CASES.items() for changes in cases]


def transformers_config(family: str, **changes: Any) -> Any:
    import transformers

    values = bare_config(family, **{**SIZES_OF.get(family, {}), **changes})
    del values["model_type"]
    return getattr(transformers, FAMILIES[family].config_class)(**values)


def derived_kinds(config: Any) -> list[str]:
    """What transformers' model does with its config: masks by layer_types, or one mask for all layers.

    Where layers without attention are mixed in, the tensors tell; here all layers have them.
    """
    if FAMILIES[config.model_type].hybrid:
        return ["full"] * config.num_hidden_layers
    config = config.get_text_config()
    window = _window(config)
    if window is None or window >= config.max_position_embeddings:
        return ["full"] * config.num_hidden_layers
    types = getattr(config, "layer_types", None) or ["sliding_attention"] * config.num_hidden_layers
    return [name.removesuffix("_attention") for name in types]


def _window(config: Any) -> int | None:
    chunk = getattr(config, "attention_chunk_size", None)
    return chunk if chunk is not None else getattr(config, "sliding_window", None)


@pytest.mark.parametrize(("family", "changes"), ALL_CASES)
def test_layer_kinds_and_windows_are_those_of_transformers(
    family: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    config = transformers_config(family, **changes)
    anatomy = read_anatomy(
        open_checkpoint(bare_source(tmp_path / "model", family, **{**SIZES_OF.get(family, {}), **changes}))
    )
    assert [layer.kind for layer in anatomy.layers] == derived_kinds(config)
    window = _window(config.get_text_config())
    expected = [window if layer.kind in ("sliding", "chunked") else None for layer in anatomy.layers]
    assert [layer.window for layer in anatomy.layers] == expected


@pytest.mark.parametrize(
    ("changes", "scaled"),
    [
        ({}, [False, False, False, True]),
        ({"no_rope_layers": [1, 0, 1, 1]}, [False, True, False, False]),
        ({"layer_types": ["chunked_attention"] * 4}, [False, False, False, True]),
        ({"attn_temperature_tuning": False}, [False] * 4),
        ({"no_rope_layers": []}, [False, False, False, True]),
    ],
)
def test_layers_whose_queries_the_family_scales_itself(
    changes: dict[str, Any], scaled: list[bool], tmp_path: Path
) -> None:
    """What transformers' attention modules say of themselves."""
    import torch
    from transformers import AutoModelForCausalLM, Llama4TextConfig

    sizes = {"num_hidden_layers": 4, "num_attention_heads": 8, "num_key_value_heads": 8, "hidden_size": 64}
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            Llama4TextConfig(**sizes, **changes, vocab_size=8, num_local_experts=1)
        )
    stock = [layer.self_attn.attn_temperature_tuning and not layer.self_attn.use_rope for layer in model.model.layers]
    found = [
        layer.scaled
        for layer in read_anatomy(open_checkpoint(bare_source(tmp_path / "model", "llama4_text", **changes))).layers
    ]
    assert found == scaled == [bool(one) for one in stock]


def test_the_cases_hold_both_kinds_where_a_family_can_slide() -> None:
    for family, row in FAMILIES.items():
        if row.hybrid or lacking(family):
            continue
        kinds = {kind for changes in CASES[family] for kind in derived_kinds(transformers_config(family, **changes))}
        assert kinds == ({"full"} if row.sliding == "none" else {"full", row.local}), family


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_a_config_of_sizes_only_gets_the_defaults_of_transformers(family: str, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"max_position_embeddings": ..., **SIZES_OF.get(family, {})}
    config = transformers_config(family, **changes)
    anatomy = read_anatomy(open_checkpoint(bare_source(tmp_path / "model", family, **changes)))
    layer = anatomy.layers[0]
    assert anatomy.tied_embeddings == config.tie_word_embeddings
    assert [entry.kind for entry in anatomy.layers] == derived_kinds(config)
    config = config.get_text_config()
    assert anatomy.trained_length == config.max_position_embeddings
    own = getattr(getattr(config, "attn_config", config), "kv_n_heads", None)
    assert layer.kv_heads == (own or getattr(config, "num_key_value_heads", None) or config.num_attention_heads)
    assert layer.head_dim == (getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)
    assert layer.softcap == getattr(config, "attn_logit_softcapping", None)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_names_in_the_table_are_those_of_the_model(family: str) -> None:
    import torch

    from tests.families import auto_class, tiny_config

    row = FAMILIES[family]
    with torch.device("meta"):
        model = auto_class(family).from_config(tiny_config(family))
    assert type(model).__name__ == row.architecture
    assert type(model.config).__name__ == row.config_class
    base = base_model_of(model)
    assert type(base).__name__ == row.base_model
    assert base is (model.get_submodule(row.base_prefix.rstrip(".")) if row.base_prefix else model)
    queries = [f"{row.base_prefix}{row.attention.format(layer=layer)}.{row.query}" for layer in range(3)]
    found = [has_submodule(model, query) for query in queries]
    assert any(found) and all(found) != row.hybrid
    query = queries[found.index(True)]
    assert getattr(model.get_submodule(query), "weight", None) is not None
    assert model._supports_sdpa == row.sdpa
    counted = base.get_submodule(row.counted_at)
    assert {"input_ids", "attention_mask"} <= set(inspect.signature(type(counted).forward).parameters)


def has_submodule(model: Any, path: str) -> bool:
    try:
        model.get_submodule(path)
    except AttributeError:
        return False
    return True


@pytest.mark.parametrize("family", sorted(name for name, row in FAMILIES.items() if row.hybrid))
def test_a_hybrid_has_attention_where_the_model_has_it(family: str, make_source: Any) -> None:
    import torch

    from tests.families import auto_class, tiny_config

    row = FAMILIES[family]
    with torch.device("meta"):
        model = auto_class(family).from_config(tiny_config(family))
    layers = read_anatomy(open_checkpoint(make_source(family))).layers
    for layer in layers:
        path = f"{row.base_prefix}{row.attention.format(layer=layer.index)}.{row.query}"
        assert (layer.kind != "none") == has_submodule(model, path), layer
    assert {layer.kind for layer in layers} > {"none"}


def test_every_name_in_the_table_is_known_to_the_code() -> None:
    from surgery.verification.presentations import PRESENTATIONS

    for name, row in FAMILIES.items():
        assert set(row.breaks) <= set(PRESENTATIONS), name
        assert name not in REFUSED


@pytest.mark.parametrize(("given", "nearest"), [("lama", "llama"), ("qwen-2", "qwen2"), ("gpt-neox", "gpt_neox")])
def test_an_unknown_family_names_the_nearest(given: str, nearest: str) -> None:
    with pytest.raises(PlanRefusedError, match="not supported") as caught:
        find_family(given)
    assert caught.value.hint is not None and f"nearest supported family is {nearest!r}" in caught.value.hint


def test_an_unknown_family_like_no_other_names_the_list() -> None:
    with pytest.raises(PlanRefusedError) as caught:
        find_family("zzzzzzzz")
    assert caught.value.hint is not None and "nearest" not in caught.value.hint
    assert "surgery families" in caught.value.hint


@pytest.mark.parametrize("family", sorted(REFUSED))
def test_a_refused_family_says_why(family: str) -> None:
    with pytest.raises(PlanRefusedError) as caught:
        find_family(family)
    assert REFUSED[family] in caught.value.message


BROKEN: list[tuple[dict[str, Any], str]] = [
    ({"num_hidden_layers": ...}, "num_hidden_layers"),
    ({"num_hidden_layers": "4"}, "num_hidden_layers"),
    ({"num_hidden_layers": True}, "num_hidden_layers"),
    ({"num_hidden_layers": 20_000}, "num_hidden_layers"),
    ({"num_attention_heads": 0}, "num_attention_heads"),
    ({"num_key_value_heads": 5}, "key-value heads"),
    ({"head_dim": -8}, "head_dim"),
    ({"hidden_size": ...}, "hidden_size"),
    ({"max_position_embeddings": 2.5}, "max_position_embeddings"),
    ({"max_position_embeddings": 2**40}, "max_position_embeddings"),
    ({"model_type": ...}, "model_type"),
    ({"model_type": 3}, "model_type"),
    ({"surgery": "no"}, "surgery"),
    ({"surgery": {"operations": 3}}, "surgery"),
    ({"surgery": {"operations": ["ssmax"]}}, "surgery"),
]
BROKEN_OF: list[tuple[str, dict[str, Any], str]] = [
    *(("llama", changes, key) for changes, key in BROKEN),
    ("qwen2", {"use_sliding_window": True, "sliding_window": "big"}, "sliding_window"),
    ("qwen2", {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": "two"}, "max_window_layers"),
    ("qwen2", {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": None}, "max_window_layers"),
    ("gemma2", {"layer_types": ["full_attention"]}, "layer_types"),
    ("gemma2", {"layer_types": ["full_attention"] * 3 + ["sideways"]}, "layer_types"),
    ("gemma2", {"layer_types": ["full_attention"] * 3 + [{}]}, "layer_types"),
    ("gemma2", {"attn_logit_softcapping": "hard"}, "attn_logit_softcapping"),
    ("gemma3_text", {"sliding_window_pattern": 0}, "sliding_window_pattern"),
    ("llama4_text", {"attention_chunk_size": 16, "layer_types": ["sliding_attention"] * 4}, "layer_types"),
    ("llama4_text", {"no_rope_layers": [1, 0, 1, 1, 1]}, "no_rope_layers"),
    ("llama4_text", {"no_rope_layers": [1, 0, 2, 1]}, "no_rope_layers"),
    ("llama4_text", {"no_rope_layers": "all"}, "no_rope_layers"),
    ("llama4_text", {"no_rope_layers": False}, "no_rope_layers"),
    ("llama4_text", {"no_rope_layers": [1.0, 1, 1, 0]}, "no_rope_layers"),
    ("llama4_text", {"attention_chunk_size": None}, "attention_chunk_size"),
    ("llama4_text", {"attn_temperature_tuning": "no"}, "attn_temperature_tuning"),
    ("llama4_text", {"attn_temperature_tuning": None}, "attn_temperature_tuning"),
    ("gemma3_text", {"sliding_window_pattern": "every"}, "sliding_window_pattern"),
]


@pytest.mark.parametrize(("family", "changes", "key"), BROKEN_OF)
def test_a_broken_config_names_the_key(family: str, changes: dict[str, Any], key: str, tmp_path: Path) -> None:
    folder = bare_source(tmp_path / "model", family)
    (folder / "config.json").unlink()
    write_json(folder / "config.json", {**bare_config(family, **changes)})
    with pytest.raises(CheckpointError) as caught:
        read_anatomy(open_checkpoint(folder))
    assert key in caught.value.message


@pytest.mark.parametrize("changes", [{"num_hidden_layers": LAYERS + 1}, {"num_attention_heads": 16, "head_dim": 3}])
def test_a_config_that_disagrees_with_the_tensors(changes: dict[str, Any], tmp_path: Path) -> None:
    folder = bare_source(tmp_path / "model")
    (folder / "config.json").unlink()
    write_json(folder / "config.json", bare_config("llama", **changes))
    with pytest.raises(CheckpointError, match="q_proj"):
        read_anatomy(open_checkpoint(folder))


def test_bidirectional_attention_is_refused(tmp_path: Path) -> None:
    folder = bare_source(tmp_path / "model", "gemma3_text", use_bidirectional_attention=True)
    with pytest.raises(PlanRefusedError, match="not causal"):
        read_anatomy(open_checkpoint(folder))


@pytest.mark.parametrize("value", [..., None, 0.02])
def test_lock_and_unlock_are_inverse_here_and_in_the_travelling_code(value: Any) -> None:
    from surgery.runtime import modeling_surgery

    config = bare_config("llama", initializer_range=value, surgery={"operations": []})
    locked = lock(config, FAMILIES["llama"])
    assert {name: locked[name] for name in LOCKS} == LOCKS
    for opened in (unlock(locked), modeling_surgery.unlock(locked)):
        del opened["surgery"]
        assert opened == {name: entry for name, entry in config.items() if name != "surgery"}
    assert modeling_surgery.lock(modeling_surgery.unlock(locked)) == locked


def test_every_family_has_the_number_that_the_second_lock_is_on() -> None:
    """A stock class reads no key that its config lacks, so a lock there would not hold."""
    import transformers

    def has_it(family: Family) -> bool:
        config = getattr(transformers, family.config_class)().get_text_config()
        return hasattr(config, family.spelling("initializer_range"))

    assert [name for name, family in FAMILIES.items() if not lacking(name) and not has_it(family)] == []


def test_rows_read_one_by_one_are_those_of_the_whole_file() -> None:
    whole = tomllib.loads(Path(families.__file__).with_name("families.toml").read_text(encoding="utf-8"))
    assert list(whole) == ["families"]
    assert {name: tomllib.loads(text) for name, text in families._texts().items()} == whole["families"]
