"""Models of vision and language: the language layers are operated on, images go through as before and are counted."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoModelForImageTextToText

from surgery.anatomy import FAMILIES, read_anatomy
from surgery.anatomy.config_locks import lock, unlock
from surgery.checkpoint import load_json, open_checkpoint, write_json
from surgery.conversion import convert, revert
from surgery.errors import CheckpointError, PlanRefusedError
from surgery.loading import load_model, operation_modules
from surgery.loading import model as loading
from surgery.loading.caches import cache_of
from surgery.operations.screening.modeling import WindowedCache
from surgery.runtime import modeling_surgery
from surgery.verification import verify
from surgery.verification.presentations import randomized
from tests.conversion.conftest import tree
from tests.families import IMAGE_TOKEN, WINDOW
from tests.runtime.test_family_matrix import BOUND, load, logits, tokens

OF_PARTS = sorted(name for name, row in FAMILIES.items() if row.text is not None)
BEFORE, IMAGE, AFTER = 5, 4, 6


@pytest.fixture(params=OF_PARTS)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


def with_image(family: str) -> dict[str, torch.Tensor]:
    """Some words, an image of four tokens, and more words."""
    words = tokens(BEFORE + AFTER)
    image = torch.full((1, IMAGE), IMAGE_TOKEN)
    ids = torch.cat([words[:, :BEFORE], image, words[:, BEFORE:]], dim=1)
    pixels = torch.randn(1, 3, 56, 56, generator=torch.Generator().manual_seed(2))
    is_image = (ids == IMAGE_TOKEN).long()
    if family == "gemma3":
        return {"input_ids": ids, "pixel_values": pixels, "token_type_ids": is_image}
    if family == "llama4":
        return {"input_ids": ids, "pixel_values": pixels}
    if family == "mistral3":
        return {"input_ids": ids, "pixel_values": pixels, "image_sizes": torch.tensor([[56, 56]])}
    patches = pixels.view(3, 4, 14, 4, 14).permute(1, 3, 0, 2, 4).reshape(16, 3, 1, 196).expand(-1, -1, 2, -1)
    grid = torch.tensor([[1, 4, 4]])
    return {
        "input_ids": ids,
        "pixel_values": patches.reshape(16, -1),
        "image_grid_thw": grid,
        "mm_token_type_ids": is_image,
    }


def run(model: Any, **inputs: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(**inputs).logits


def test_an_image_goes_through_and_its_tokens_are_counted(make_source: Any, tmp_path: Path, family: str) -> None:
    source = load(make_source(family))
    model = load(convert(make_source(family), layers="all", output=tmp_path / "out").output)
    inputs = with_image(family)
    expected = run(source, **inputs)
    assert torch.equal(run(model, **inputs), expected)
    blind = {**inputs, "pixel_values": torch.zeros_like(inputs["pixel_values"])}
    assert (run(source, **blind) - expected).abs().max() > 1e-3, "the image must matter"
    modules: dict[str, Any] = operation_modules(model)
    stem = "language_model.model.layers." if family == "llama4" else "model.language_model.layers."
    chosen = [0, 2] if family == "llama4" else [0, 1, 2]  # Llama 4 scales the queries of its full layer itself
    assert list(modules) == [f"{stem}{layer}.self_attn.ssmax" for layer in chosen]
    seen: list[torch.Tensor] = []
    module = modules[f"{stem}0.self_attn.ssmax"]
    module.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    with torch.no_grad():
        for each in modules.values():
            each.scale.add_(0.3)
    assert (run(model, **inputs) - expected).abs().max() > 1e-2
    n = list(range(1, BEFORE + IMAGE + AFTER + 1))
    if family == "gemma3":  # the tokens of an image see all of it
        n[BEFORE : BEFORE + IMAGE] = [BEFORE + IMAGE] * IMAGE
    assert seen[0].tolist() == [n]


def test_generation_after_an_image_equals_a_plain_loop(make_source: Any, tmp_path: Path, family: str) -> None:
    model = load(convert(make_source(family), form="paper", layers="all", output=tmp_path / "out").output)
    inputs = with_image(family)
    generated = model.generate(**inputs, max_new_tokens=4, min_new_tokens=4, do_sample=False)
    for _ in range(4):
        scores = run(model, **inputs)[:, -1]
        scores[:, model.generation_config.eos_token_id] = -torch.inf
        inputs["input_ids"] = torch.cat([inputs["input_ids"], scores.argmax(-1, keepdim=True)], dim=1)
        for name in {"token_type_ids", "mm_token_type_ids"} & inputs.keys():
            inputs[name] = torch.nn.functional.pad(inputs[name], (0, 1))
    assert torch.equal(generated, inputs["input_ids"])


def test_screening_of_words_and_images(make_source: Any, tmp_path: Path, family: str) -> None:
    """An open model equals the source; the reference and the mask for sdpa agree, and images still have an effect."""
    source = make_source(family)
    options = {"name": "screening", "layers": "all", "open": True}
    out = convert(source, [options], output=tmp_path / "out").output
    inputs = with_image(family)
    expected = run(load(source), **inputs)
    found = {}
    for backend in ("eager", "sdpa"):
        model: Any = load(out, attn_implementation=backend)
        opened = run(model, **inputs)
        assert (opened - expected).abs().max() < BOUND if backend == "eager" else torch.equal(opened, expected)
        with randomized(model):
            found[backend] = run(model, **inputs)
            blind = {**inputs, "pixel_values": torch.zeros_like(inputs["pixel_values"])}
            assert (run(model, **blind) - found[backend]).abs().max() > 1e-3
        modules: dict[str, Any] = operation_modules(model)
        ran = {module.path.split()[0] for module in modules.values()}
        assert ran == {"reference" if backend == "eager" else backend}
    assert (found["eager"] - expected).abs().max() > 1e-2
    assert (found["eager"] - found["sdpa"]).abs().max() < BOUND


@pytest.fixture(params=["here", pytest.param("fresh", marks=pytest.mark.slow)])
def _fresh() -> None:
    """The slow one loads it in a process of its own too, without this package, as a part of the verification."""


@pytest.mark.usefixtures("_fresh")
def test_it_verifies_reverts_and_loads_as_its_source_does(make_source: Any, tmp_path: Path, family: str) -> None:
    """Also the first layers alone."""
    source = make_source(family)
    out = convert(source, layers="all", output=tmp_path / "out").output
    screened = convert(source, "screening", open=True, output=tmp_path / "screened").output
    assert verify(screened, against=source, length=3 * WINDOW, record=False).failed == ()
    for layers in (None, 2):
        # Before transformers 5.23 Llama 4's chunks begin with the row. A thorough check's documents begin with a chunk.
        result = verify(out, against=source, length=3 * WINDOW, layers=layers, thorough=True, record=False)
        assert result.failed == ()
    shards = {name: content for name, content in tree(source).items() if name.endswith(".safetensors")}
    assert {tree(out)[f"source-{name}"] == content for name, content in shards.items()} == {True}
    by_parts = AutoModelForImageTextToText.from_pretrained(out, trust_remote_code=False).eval()
    assert torch.equal(logits(by_parts, tokens()), logits(load_model(source), tokens()))
    revert(out, output=tmp_path / "back")
    assert tree(tmp_path / "back") == tree(source)


@pytest.mark.usefixtures("_fresh")
def test_an_older_file_without_a_part_for_the_text(make_source: Any, tmp_path: Path) -> None:
    """The published Qwen 2.5 VL: saved again, it has the part, and the lock moves into it."""
    source = shutil.copytree(make_source("qwen2_5_vl"), tmp_path / "source")
    config = load_json(source / "config.json")
    text = config.pop("text_config")
    (source / "config.json").unlink()
    write_json(source / "config.json", {**text, **config})
    assert [layer.kind for layer in read_anatomy(open_checkpoint(source)).layers] == ["full", "full", "sliding"]
    out = convert(source, layers="all", output=tmp_path / "out").output
    assert isinstance(load_json(out / "config.json")["initializer_range"], str)
    assert verify(out, against=source, length=3 * WINDOW, record=False).failed == ()
    load(out).save_pretrained(tmp_path / "saved")
    saved = load_json(tmp_path / "saved" / "config.json")
    assert isinstance(saved["text_config"]["initializer_range"], str) and "initializer_range" not in saved
    assert torch.equal(logits(load(tmp_path / "saved"), tokens()), logits(load(source), tokens()))


@pytest.mark.parametrize("text", [{}, {"initializer_range": 0.5}, None])
def test_the_lock_is_inside_the_part_where_there_is_one(text: dict[str, Any] | None) -> None:
    config = {"model_type": "gemma3", "initializer_range": 0.1, "surgery": {"operations": []}}
    config |= {} if text is None else {"text_config": text}
    locked = lock(config, FAMILIES["gemma3"])
    holder: Any = locked if text is None else locked["text_config"]
    assert isinstance(holder["initializer_range"], str)
    for opened in (unlock(locked), modeling_surgery.unlock(json.loads(json.dumps(locked)))):
        assert {**opened, "surgery": config["surgery"]} == config
    assert modeling_surgery.lock(modeling_surgery.unlock(locked)) == locked


@pytest.mark.parametrize(("text_type", "reason"), [("ministral3", "scales its queries by the position"), ("llama", "")])
def test_a_language_model_that_is_not_known_inside_is_refused(
    make_source: Any, tmp_path: Path, text_type: str, reason: str
) -> None:
    source = shutil.copytree(make_source("mistral3"), tmp_path / "source")
    config = load_json(source / "config.json")
    config["text_config"]["model_type"] = text_type
    (source / "config.json").unlink()
    write_json(source / "config.json", config)
    with pytest.raises(PlanRefusedError, match=f"'{text_type}'.*{reason}.*only 'mistral'"):
        convert(source, output=tmp_path / "out")


def test_a_windowed_cache_after_an_image(make_source: Any, tmp_path: Path, family: str) -> None:
    options = {"name": "screening", "layers": "all", "start": {"threshold": -0.2, "softness": 0.1, "log2_window": 2.6}}
    model = load(convert(make_source(family), [options], output=tmp_path / "out").output)
    given: dict[str, Any] = {**with_image(family), "max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False}
    expected = model.generate(**given, return_dict_in_generate=True, output_logits=True)
    model.config.windowed_cache = True
    if family == "gemma3":  # its image tokens see one another, which it says by a mask of four dimensions
        with pytest.raises(ValueError, match="2-D attention mask"):
            model.generate(**given)
        return
    found = model.generate(**given, return_dict_in_generate=True, output_logits=True)
    assert isinstance(cache_of(found), WindowedCache)
    for one, other in zip(found.logits, expected.logits, strict=True):
        assert (one - other).abs().max() < BOUND


def test_another_rope_is_refused(make_source: Any, family: str) -> None:
    with pytest.raises(PlanRefusedError, match=r"not verified on a vision-language model|no rotary positions"):
        convert(make_source(family), "rope")


def test_a_transformers_that_cannot_run_the_family_is_named(
    make_source: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = make_source("llama4")
    out = convert(source, layers="chunked", output=tmp_path / "out").output
    row, installed = FAMILIES["llama4"], transformers.__version__
    if installed in row.fails:  # what is said of it is so
        with pytest.raises(AttributeError, match="image_outputs"):
            run(load(source), input_ids=tokens())
    monkeypatch.setattr(loading, "FAMILIES", {"llama4": replace(row, fails={installed: "it is broken"})})
    for folder in (source, out):
        with pytest.raises(
            CheckpointError, match=f"{row.architecture} does not run in transformers {installed}.*: it is broken"
        ):
            load_model(folder)
