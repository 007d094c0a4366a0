"""Presentations whose mask, cache or positions come from somebody else: they pass, and planted faults fail in them.

The faults are planted into the code that travels in a converted folder, and the model is loaded with that code.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.dynamic_module_utils import get_class_from_dynamic_module

from surgery.conversion import convert
from surgery.loading import load_model
from surgery.verification.foreign_inputs import FOREIGN, foreign_checks
from surgery.verification.presentations import presentation_differences, randomized
from tests.families import VOCABULARY, WINDOW

HOLE, THINNED, PAGES = (f"n: {name}" for name in FOREIGN)
# Full layers alone, sliding alone, both in turn, and chunks beside full layers.
FAMILIES = ("llama", "mistral", "gemma2", "llama4_text")
COUNTED = ("if counted is not None:", "if False:")
BY_POSITION = ("else torch.minimum(by_position, visible)", "else by_position")
NO_MASK = ("if isinstance(attention_mask, torch.Tensor) and attention_mask.dim() == 2:", "if False:")
NO_4D = ("attention_mask.dim() == 4", "attention_mask.dim() == 5")
NO_PAGES = ("by_position if past_length is None else torch.minimum", "torch.minimum")


def tokens() -> torch.Tensor:
    return torch.randint(3, VOCABULARY, (1, 2 * WINDOW + 8), generator=torch.Generator().manual_seed(2))


@pytest.fixture(scope="module")
def converted(make_source: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """``converted("mistral")``: the folder, with an operation on every layer."""
    made: dict[str, Path] = {}

    def get(family: str) -> Path:
        if family not in made:
            source = make_source(family, **({"sliding_window": WINDOW} if family == "mistral" else {}))
            output = tmp_path_factory.mktemp("foreign") / "out"
            made[family] = convert(source, form="paper", layers="all", output=output).output
        return made[family]

    return get


def statuses(model: Any) -> dict[str, str]:
    with randomized(model, spread=0.3):
        return {check.name: check.status for check in foreign_checks(model, tokens())}


@pytest.mark.parametrize("backend", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_they_pass(converted: Any, family: str, backend: str) -> None:
    model = load_model(converted(family))
    if backend == "sdpa" and not model._supports_sdpa:
        pytest.skip("this family has no sdpa attention")
    model.set_attn_implementation(backend)
    with randomized(model, spread=0.3):
        checks = {check.name: check for check in foreign_checks(model, tokens())}
    pages = checks.pop(PAGES)
    assert {check.status for check in checks.values()} == {"passed"}, checks
    assert pages.status == ("skipped" if family == "llama4_text" else "passed"), pages
    if family == "llama4_text":
        assert "no continuous batching for chunked attention" in pages.detail


def planted(folder: Path, place: Path, *changes: tuple[str, str], file: str = "surgery_visible_keys.py") -> Any:
    """The model with the code of its folder, in which some text is replaced."""
    # transformers keeps code by the name of its folder.
    copy = Path(shutil.copytree(folder, place / place.name))
    text = (copy / file).read_text()
    for right, wrong in changes:
        assert text.count(right) == 1, right
        text = text.replace(right, wrong)
    (copy / file).write_text(text)
    name = load_model(folder).__class__.__name__
    model_class: Any = get_class_from_dynamic_module(f"modeling_surgery.{name}", str(copy))
    return model_class.from_pretrained(copy).eval()


@pytest.mark.parametrize(
    ("family", "changes", "failed"),
    [
        pytest.param("mistral", (COUNTED,), {HOLE}, id="min(n, window) in sliding layers"),
        pytest.param("gemma2", (COUNTED,), {HOLE}, id="the same beside full layers"),
        pytest.param("llama", (COUNTED, BY_POSITION), {THINNED}, id="n is not bounded by the keys that are there"),
        pytest.param("gemma2", (COUNTED, BY_POSITION), {HOLE, THINNED}, id="both"),
        pytest.param("llama", (COUNTED, NO_MASK), {HOLE}, id="the mask is not read"),
        pytest.param("llama", (COUNTED, NO_PAGES, NO_4D), {PAGES}, id="a cache in pages is taken for an empty one"),
    ],
)
def test_planted_faults(
    converted: Any, tmp_path: Path, family: str, changes: tuple[tuple[str, str], ...], failed: set[str]
) -> None:
    model = planted(converted(family), tmp_path, *changes)
    assert {name for name, status in statuses(model).items() if status == "failed"} == failed
    if NO_MASK not in changes:  # no other presentation shows these faults
        with randomized(model, spread=0.3):
            assert max(presentation_differences(model, tokens()).values()) < 1e-4


def test_a_converted_model_that_cannot_run_where_the_source_can(converted: Any, tmp_path: Path) -> None:
    change = ('cache.get_seq_length() if hasattr(cache, "get_seq_length") else None', "cache.get_seq_length()")
    model = planted(converted("llama"), tmp_path, change, file="surgery_models.py")
    (check,) = [check for check in foreign_checks(model, tokens()) if check.status == "failed"]
    assert check.name == PAGES and "the converted model cannot run so, the source can" in check.detail


def test_what_cannot_be_counted_says_why(make_source: Any, tmp_path: Path) -> None:
    screening = load_model(convert(make_source("llama"), "screening", open=True, output=tmp_path / "out").output)
    assert {check.status for check in foreign_checks(screening, tokens())} == {"skipped"}
    assert "attends itself" in foreign_checks(screening, tokens())[0].detail
