"""`surgery new` names only recipes that exist as the next step."""

from __future__ import annotations

from pathlib import Path

from surgery.models import ARCHITECTURES

RECIPES = Path(__file__).parents[3] / "recipes"


def test_the_next_step_is_a_recipe_that_exists() -> None:
    for name, architecture in ARCHITECTURES.items():
        assert (RECIPES / f"{name}-pretrain.yaml").is_file() == architecture.has_recipe
