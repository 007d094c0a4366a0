"""YAML files of users, validated by pydantic schemas: all errors at once, with line numbers and the nearest key."""

from surgery.schemas.problems import problems_of
from surgery.schemas.schema import Problem, Schema, SchemaError
from surgery.schemas.yaml_text import Keys, dotted, load_yaml, read_text

__all__ = ["Keys", "Problem", "Schema", "SchemaError", "dotted", "load_yaml", "problems_of", "read_text"]
