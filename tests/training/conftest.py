"""The tiny checkpoints, texts and recipes of the tests of recovery."""

from tests.recovery.conftest import converted, make_recipe, texts

__all__ = ["converted", "make_recipe", "texts"]
