"""YAML that people write, checked against a pydantic schema: every error with its line, and the nearest key."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from surgery.schemas.problems import problems_of
    from surgery.schemas.schema import Problem, Schema, SchemaError
    from surgery.schemas.yaml_text import Keys, dotted, load_yaml, read_text

__all__ = ["Keys", "Problem", "Schema", "SchemaError", "dotted", "load_yaml", "problems_of", "read_text"]

# Loaded on first use: a command that reads no YAML loads no parser.
_HOMES = {"problems_of": "problems", "Problem": "schema", "Schema": "schema", "SchemaError": "schema"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES.get(name, 'yaml_text')}"), name)
