"""A loss over logits that are made a piece at a time is the loss over all of them, with the same gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from surgery.checkpoint import open_checkpoint
from surgery.data import Row, collate
from surgery.loading import RunOptions, load_model
from surgery.recovery.layout import Layout
from surgery.recovery.lora import prepare_model
from surgery.recovery.recipe_file import read_recipe
from surgery.recovery.teachers import original
from surgery.training import logits as module
from surgery.training.held_out import document_losses
from surgery.training.logits import pieces
from tests.recovery.conftest import Converted, MakeRecipe, objective_sum

OBJECTIVES = [
    {"name": "next_token"},
    {"name": "distill", "share": 0.5, "temperature": 2.0},
    {"name": "match"},
    {"name": "hold", "weight": 0.5},
]
ROWS = [
    Row(((5, 9, 4, 77, 30, 31, 8), (12, 13, 14, 15))),
    Row(((3, 200, 100, 50, 25, 12, 6, 3, 44),), (2,), ((False,) * 6 + (True,) * 3,)),
]


def _in_pieces(monkeypatch: pytest.MonkeyPatch, positions: int) -> None:
    monkeypatch.setattr(module, "TRAINED_AT_ONCE", len(ROWS) * 260 * positions)


def _gradients(model: Any, batch: dict[str, torch.Tensor], objective: Any) -> tuple[float, dict[str, torch.Tensor]]:
    model.zero_grad(set_to_none=True)
    loss = objective_sum(objective, model, batch)
    loss.backward()
    found = {name: own.grad.clone() for name, own in model.named_parameters() if own.grad is not None}
    return loss.item(), found


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda objective: objective["name"])
@pytest.mark.parametrize("family", ["llama", "gemma2"])  # gemma2 has a soft cap behind its head
def test_pieces_equal_the_whole(
    make_recipe: MakeRecipe, converted: Converted, monkeypatch: pytest.MonkeyPatch, family: str, objective: Any
) -> None:
    model = load_model(converted(family, form="paper", scale=1.5, spread=0.4), RunOptions(device="cpu"))
    options = read_recipe(make_recipe(objective=objective)).objective
    batch = collate(ROWS)
    assert len(pieces(model, batch)) == 1
    loss, expected = _gradients(model, batch, options)
    _in_pieces(monkeypatch, 3)
    assert len(pieces(model, batch)) == 4
    in_pieces, found = _gradients(model, batch, options)
    assert in_pieces == pytest.approx(loss, rel=1e-5)
    assert found.keys() == expected.keys() and any("ssmax" in name for name in found)
    for name, gradient in expected.items():
        assert torch.allclose(found[name], gradient, atol=1e-5 * max(1.0, gradient.abs().max().item())), name


def test_an_adapter_learns_the_same_in_pieces(
    make_recipe: MakeRecipe, converted: Converted, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = converted(form="paper", scale=1.5, spread=0.4)
    recipe = read_recipe(make_recipe(folder, train={"what": "scale+lora", "rank": 2}, objective=OBJECTIVES[1]))
    base = load_model(folder, RunOptions(device="cpu"))
    model = prepare_model(base, recipe, Layout(open_checkpoint(folder).config))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.full_like(parameter, 0.05))
    batch = collate(ROWS)
    loss, expected = _gradients(model, batch, recipe.objective)
    _in_pieces(monkeypatch, 2)
    in_pieces, found = _gradients(model, batch, recipe.objective)
    assert in_pieces == pytest.approx(loss, rel=1e-5)
    learned = [name for name in expected if "lora_A" in name]
    assert learned and all(torch.allclose(found[name], expected[name], rtol=1e-3, atol=1e-5) for name in learned)


def test_held_out_losses_in_pieces(converted: Converted, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_model(converted(), RunOptions(device="cpu"))
    expected = document_losses(model, ROWS, size=2, device=torch.device("cpu"))
    _in_pieces(monkeypatch, 2)
    found = document_losses(model, ROWS, size=2, device=torch.device("cpu"))
    assert [own.size for own in found] == [6, 3, 3]
    for ours, theirs in zip(found, expected, strict=True):
        assert abs(ours - theirs).max() < 1e-5


def test_no_matrix_of_all_logits(
    converted: Converted, make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In pieces, the head never sees more positions at once than fit."""
    model = load_model(converted(), RunOptions(device="cpu"))
    seen: list[int] = []
    model.get_output_embeddings().register_forward_hook(
        lambda own, arguments, output: seen.append(output.shape[0] * output.shape[1])
    )
    _in_pieces(monkeypatch, 3)
    objective = read_recipe(make_recipe(objective=OBJECTIVES[1])).objective
    _gradients(model, collate(ROWS), objective)
    assert max(seen) == len(ROWS) * 3 and len(seen) > 10


def test_hold_learns_answers_and_holds_the_rest(converted: Converted, make_recipe: MakeRecipe) -> None:
    """Against sums over single positions, each document run alone."""
    model = load_model(converted(form="paper", scale=1.5, spread=0.4), RunOptions(device="cpu"))
    objective = read_recipe(make_recipe(objective={"name": "hold", "weight": 0.5})).objective
    found = objective_sum(objective, model, collate(ROWS)).item()
    expected = 0.0
    for row in ROWS:
        for document, flags in zip(row.documents, row.flags(), strict=True):
            ids = torch.tensor([document])
            with torch.no_grad():
                own = model(ids).logits[0].log_softmax(-1)
                with original(model):
                    source = model(ids).logits[0].log_softmax(-1)
            for place in range(1, len(document)):
                before = place - 1
                if row.predicted and flags[place]:
                    expected -= own[before, document[place]].item()
                else:
                    expected += 0.5 * (source[before].exp() * (source[before] - own[before])).sum().item()
    assert found == pytest.approx(expected, rel=1e-4)
