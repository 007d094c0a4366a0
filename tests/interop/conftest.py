"""Converted checkpoints as other programs meet them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Operated = Callable[..., Path]


def load(folder: Path, **options: Any) -> Any:
    """By the registered type, in evaluation mode."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False, **options).eval()


def tokens(length: int = 40) -> Any:
    import torch

    from tests.families import VOCABULARY

    return torch.randint(3, VOCABULARY, (1, length), generator=torch.Generator().manual_seed(1))


def logits(model: Any, ids: Any = None, **options: Any) -> Any:
    import torch

    with torch.no_grad():
        return model(input_ids=tokens() if ids is None else ids, **options).logits.float()


def scales(model: Any) -> dict[str, Any]:
    return {name: value for name, value in model.named_parameters() if ".ssmax." in name}


@pytest.fixture(scope="session")
def operated(make_source: Any, tmp_path_factory: pytest.TempPathFactory) -> Operated:
    """``operated("gemma2", dtype=torch.bfloat16)``: converted to the paper's form, made once; no test writes to it."""
    from surgery.conversion import convert

    made: dict[str, Path] = {}

    def make(family: str = "llama", *, form: str = "paper", **source: Any) -> Path:
        key = f"{family}-{form}-{sorted(source.items())}"
        if key not in made:
            out = tmp_path_factory.mktemp("operated") / f"{family}-ssmax"
            made[key] = convert(make_source(family, **source), form=form, layers="all", output=out).output
        return made[key]

    return make
