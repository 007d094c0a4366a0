"""YAML that people write, read against a pydantic schema: line numbers, every fault at once, the nearest key."""

from surgery.schemas.problems import problems_of
from surgery.schemas.schema import Problem, Schema, SchemaError
from surgery.schemas.yaml_text import Keys, dotted, load_yaml, read_text

__all__ = ["Keys", "Problem", "Schema", "SchemaError", "dotted", "load_yaml", "problems_of", "read_text"]
