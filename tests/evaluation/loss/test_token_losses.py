"""Losses in chunks equal the losses from the whole matrix of logits, for every family."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy

from surgery.anatomy import FAMILIES
from surgery.evaluation.loss.token_losses import token_losses
from tests.families import VOCABULARY, families_for_the_matrix, tiny_model


def _whole(model: torch.nn.Module, input_ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        logits = model(input_ids=input_ids).logits.float()
    targets = input_ids[:, 1:]
    return cross_entropy(logits[:, :-1].flatten(0, 1), targets.flatten(), reduction="none").view_as(targets)


@pytest.mark.parametrize("model_type", families_for_the_matrix())
def test_chunks_equal_the_whole(model_type: str) -> None:
    model = tiny_model(model_type)
    input_ids = torch.randint(3, VOCABULARY, (2, 37), generator=torch.Generator().manual_seed(1))
    whole = _whole(model, input_ids)
    for rows in (1, 7, 36, 100, None):
        torch.testing.assert_close(token_losses(model, input_ids, rows=rows), whole, atol=1e-5, rtol=0)
    assert "forward" not in model.base_model.__dict__  # nothing is left behind
    torch.testing.assert_close(_whole(model, input_ids), whole, atol=0, rtol=0)


@pytest.mark.parametrize("model_type", families_for_the_matrix())
def test_a_cache_between_chunks_changes_nothing(model_type: str) -> None:
    model = tiny_model(model_type)
    input_ids = torch.randint(3, VOCABULARY, (2, 37), generator=torch.Generator().manual_seed(1))
    done: list[int] = []
    chunked = token_losses(model, input_ids, chunk=8, rows=3, on_tokens=done.append)
    torch.testing.assert_close(chunked, _whole(model, input_ids), atol=1e-5, rtol=0)
    assert done == ([16, 16, 16, 16, 10] if FAMILIES[model_type].continues else [74])


def test_the_final_soft_cap_is_applied() -> None:
    input_ids = torch.randint(3, VOCABULARY, (1, 37), generator=torch.Generator().manual_seed(1))
    capped = tiny_model("gemma2", final_logit_softcapping=1.0)
    open_end = tiny_model("gemma2", final_logit_softcapping=None)
    torch.testing.assert_close(token_losses(capped, input_ids, rows=5), _whole(capped, input_ids), atol=1e-5, rtol=0)
    assert (token_losses(capped, input_ids, rows=5) - token_losses(open_end, input_ids, rows=5)).abs().max() > 0.1


def test_never_more_rows_of_logits_than_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama")
    seen: list[int] = []
    model.lm_head.register_forward_hook(lambda module, arguments, output: seen.append(output.shape[1]))
    token_losses(model, torch.randint(3, VOCABULARY, (1, 50)), rows=8)
    assert max(seen) == 8 and seen[0] == 1 and sum(seen[1:]) == 49


def test_the_default_chunk_follows_batch_and_vocabulary(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("surgery.evaluation.loss.token_losses.LOGITS_AT_ONCE", 10 * 2 * VOCABULARY)
    model = tiny_model("llama")
    seen: list[int] = []
    model.lm_head.register_forward_hook(lambda module, arguments, output: seen.append(output.shape[1]))
    token_losses(model, torch.randint(3, VOCABULARY, (2, 25)))
    assert max(seen) == 10


def test_a_forward_that_another_library_put_there_comes_back() -> None:
    model = tiny_model("llama")
    base, calls = model.base_model, []
    original = base.forward

    def wrapped(*arguments: object, **keywords: object) -> object:
        calls.append(1)
        return original(*arguments, **keywords)

    base.forward = wrapped
    token_losses(model, torch.randint(3, VOCABULARY, (1, 20)), rows=4)
    assert base.__dict__["forward"] is wrapped and len(calls) == 1
