"""Compilers, offloading, caches, copies: what other code does with a loaded model."""

from __future__ import annotations

import copy
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from surgery.loading.caches import cache_of
from tests.interop.conftest import Operated, load, logits, scales, tokens


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt_neox", "phi3"])
def test_the_forward_is_one_graph(operated: Operated, family: str) -> None:
    """torch.compile without a break; traced only, so that no compiler is needed."""
    model = load(operated(family))
    expected = logits(model, use_cache=False)
    torch.compiler.reset()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    assert torch.equal(logits(compiled, use_cache=False), expected)


@pytest.mark.slow
def test_compiled_equals_eager(operated: Operated) -> None:
    if shutil.which("g++") is None and shutil.which("clang++") is None:
        pytest.skip("torch.compile needs a C++ compiler, and there is none")
    model = load(operated(num_hidden_layers=1))
    torch.compiler.reset()
    compiled = torch.compile(model)
    with torch.no_grad():
        for parameter in scales(model).values():
            parameter.copy_(torch.tensor([0.15, 0.25, 0.35, 0.45]))
    assert (logits(compiled, use_cache=False) - logits(model, use_cache=False)).abs().max() < 1e-4


DEVICE_MAPS: dict[str, Any] = {
    "cpu": "cpu",
    "auto": "auto",
    "disk": {
        "model.embed_tokens": "cpu",
        "model.rotary_emb": "cpu",
        "model.layers.0": "cpu",
        "model.layers.1": "disk",
        "model.layers.2": "disk",
        "model.norm": "disk",
        "lm_head": "cpu",
    },
}


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("device_map", DEVICE_MAPS)
def test_accelerate_places_the_scales_with_their_layers(
    operated: Operated, device_map: str, dtype: Any, tmp_path: Path
) -> None:
    pytest.importorskip("accelerate")
    folder = operated(dtype=dtype)
    options = {"offload_folder": str(tmp_path / "offload")} if device_map == "disk" else {}
    model = load(folder, device_map=DEVICE_MAPS[device_map], **options)
    if device_map == "disk":
        assert [parameter.device.type for parameter in scales(model).values()] == ["cpu", "meta", "meta"]
    assert {parameter.dtype for parameter in scales(model).values()} == {torch.float32}
    assert torch.equal(logits(model), logits(load(folder)))


@pytest.mark.parametrize("family", ["llama", "gemma2", "qwen2"])
def test_generation_with_a_static_cache(operated: Operated, family: str) -> None:
    model = load(operated(family))
    options = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False}
    expected = model.generate(tokens(24), **options)
    # generate compiles the forward for a static cache on a GPU only.
    found = model.generate(tokens(24), cache_implementation="static", **options)
    assert torch.equal(found, expected)


@pytest.mark.parametrize(("backend", "module", "bits"), [("quanto", "optimum.quanto", 4), ("hqq", "hqq.core", 8)])
def test_generation_with_a_quantized_cache(operated: Operated, backend: str, module: str, bits: int) -> None:
    pytest.importorskip(module, reason=f"{backend} is not installed: make test-interop")
    model = load(operated())
    counted: list[torch.Tensor] = []
    model.model.layers[1].self_attn.ssmax.register_forward_pre_hook(lambda _, given: counted.append(given[0].clone()))
    common: Any = {"max_new_tokens": 12, "min_new_tokens": 12, "do_sample": False, "return_dict_in_generate": True}
    plain = model.generate(tokens(24), output_logits=True, **common)
    expected, counted[:] = list(counted), []
    # The prompt is quantized at once, and what follows when it is four tokens.
    options = {"nbits": bits, "backend": backend, "residual_length": 4}
    found = model.generate(
        tokens(24), cache_implementation="quantized", cache_config=options, output_logits=True, **common
    )
    assert type(cache_of(found)).__name__ == "QuantizedCache"
    assert [n.tolist() for n in counted] == [n.tolist() for n in expected]
    # The first token is of the prompt's own keys, the second of quantized ones.
    assert torch.equal(found.logits[0], plain.logits[0])
    rounding = (found.logits[1] - plain.logits[1]).abs().max() / plain.logits[1].abs().max()
    assert 0 < rounding < (0.5 if bits == 4 else 0.05)


@pytest.mark.parametrize("family", ["llama", "gemma2", "qwen2"])
@pytest.mark.parametrize("drafts", ["a smaller model", "prompt lookup", "early exit"])
def test_assisted_generation(operated: Operated, family: str, drafts: str) -> None:
    """Tokens are drafted, checked many at once, and taken out of the cache where they were wrong."""
    model = load(operated(family))
    prompt = tokens(12).repeat(1, 2)  # for the lookup to find something in
    options: Any = {"max_new_tokens": 24, "min_new_tokens": 24, "do_sample": False}
    expected = model.generate(prompt, **options)
    widths: list[int] = []
    model.model.layers[2].self_attn.ssmax.register_forward_pre_hook(lambda _, given: widths.append(given[0].shape[-1]))
    if drafts == "a smaller model":
        # One that drafts both rightly and wrongly: the same with other scales.
        assistant = load(operated(family))
        with torch.no_grad():
            for parameter in scales(assistant).values():
                parameter.mul_(0.9)
        options["assistant_model"] = assistant
    elif drafts == "prompt lookup":
        options["prompt_lookup_num_tokens"] = 3
    else:
        options["assistant_early_exit"] = 2
    found = model.generate(prompt, **options)
    assert any(1 < width < prompt.shape[1] for width in widths), "no draft was checked"
    assert torch.equal(found, expected)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))])
def test_copies_of_config_and_model(operated: Operated, duplicate: Any) -> None:
    model = load(operated())
    config = duplicate(model.config)
    assert type(config) is type(model.config)
    assert config.to_json_string() == model.config.to_json_string()
    config.surgery["operations"].clear()
    assert model.config.surgery["operations"], "a copy must not share its parts"
    assert torch.equal(logits(duplicate(model)), logits(model))


def test_the_base_model_loads_alone(operated: Operated) -> None:
    from transformers import AutoModel

    base = AutoModel.from_pretrained(operated(), trust_remote_code=False).eval()
    whole = load(operated())
    with torch.no_grad():
        found = base(input_ids=tokens()).last_hidden_state
    assert torch.equal(whole.lm_head(found), logits(whole))
