"""YAML files as plain values, with the line of each key, within limits of size and depth."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from ruamel.yaml.scanner import Scanner, ScannerError

from surgery.errors import UsageError
from surgery.schemas.schema import Problem, Schema

MAX_BYTES = 256 * 1024
_MOST_NODES = 5000
DEEPEST = 12
SCALARS = frozenset(f"tag:yaml.org,2002:{kind}" for kind in ("null", "bool", "int", "float", "str"))
_TIMESTAMP = "tag:yaml.org,2002:timestamp"
_ALLOWED = SCALARS | {"tag:yaml.org,2002:map", "tag:yaml.org,2002:seq", _TIMESTAMP}
_MERGE = "tag:yaml.org,2002:merge"

Keys = tuple[str | int, ...]


def dotted(path: Keys) -> str:
    """A path of keys as text: ``data.sources.0``."""
    return ".".join(str(part) for part in path)


def read_text(path: Path, schema: Schema) -> str:
    """The text of a file.

    Raises:
        UsageError: the file is missing, too large, or not UTF-8.
    """
    try:
        if not path.is_file():
            raise UsageError(
                f"there is no {schema.noun} file {str(path)!r}",
                hint=schema.missing_hint,
            )
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise UsageError(f"{path} is larger than {MAX_BYTES:,} bytes, the most that a {schema.noun} may have")
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 text (byte {error.start})") from error
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error


def load_yaml(text: str, name: str, lines: dict[Keys, int], problems: list[Problem], schema: Schema) -> dict[str, Any]:
    """Plain values from YAML.

    Args:
        text: of the file.
        name: of the file, for messages.
        lines: filled with the line of each key.
        problems: filled with errors that do not stop the reading, such as duplicate keys.
        schema: the kind of file.

    Raises:
        SchemaError: the text is not YAML, or has too many or too deeply nested values.
    """
    yaml = untrusted_yaml()
    try:
        root = yaml.compose(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        message = error.problem or error.context or "not YAML"
        raise schema.error(name, [Problem("", mark.line + 1 if mark else None, f"not YAML: {message}")]) from error
    except (YAMLError, ValueError, RecursionError) as error:
        raise schema.error(name, [Problem("", None, f"not YAML: {str(error).splitlines()[0]}")]) from error
    if not isinstance(root, MappingNode):
        raise schema.error(name, [Problem("", 1, f"must contain keys and values, such as `{schema.example}`")])
    return _Plain(yaml, lines, problems, schema).mapping(root, ())


class _ShallowScanner(Scanner):
    """Rejects deeply nested brackets, because the time to scan them grows with the square of their depth."""

    def fetch_flow_collection_start(self, TokenClass: Any, to_push: str) -> None:  # noqa: N803 (the library's name)
        if len(self.flow_context) >= DEEPEST:
            mark = self.reader.get_mark()
            raise ScannerError(None, None, "too deeply nested values", mark)
        super().fetch_flow_collection_start(TokenClass, to_push)


def untrusted_yaml() -> YAML:
    """A reader of plain values for untrusted text: its time is proportional to the length of any text.

    Beside YAMLError and ValueError it raises RecursionError, for deep indentation.
    """
    yaml = YAML(typ="safe", pure=True)
    yaml.Scanner = _ShallowScanner
    return yaml


class _Plain:
    """Converts YAML nodes to plain values, within limits, because aliases of aliases can grow without end."""

    def __init__(self, yaml: YAML, lines: dict[Keys, int], problems: list[Problem], schema: Schema) -> None:
        self._yaml, self._lines, self._problems, self._schema = yaml, lines, problems, schema
        self._nodes = 0

    def mapping(self, node: MappingNode, path: Keys) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, ScalarNode) or str(key_node.tag) == _MERGE:
                self._note(path, line, "keys must be plain words")
                continue
            key = key_node.value
            where = (*path, key)
            if key in result:
                self._note(where, line, f"given twice, first on line {self._lines[where]}")
                continue
            self._lines[where] = line
            result[key] = self.value(value_node, where)
        return result

    def value(self, node: Node, path: Keys) -> Any:
        self._nodes += 1
        line = node.start_mark.line + 1
        if self._nodes > _MOST_NODES or len(path) > DEEPEST:
            problem = Problem(dotted(path), line, "too many or too deeply nested values")
            raise self._schema.error(f"The {self._schema.noun}", [problem])
        if str(node.tag) not in _ALLOWED:
            self._note(
                path, line, f"the tag {str(node.tag).rpartition(',2002:')[2]!r} is not allowed in a {self._schema.noun}"
            )
            return None
        if isinstance(node, MappingNode):
            return self.mapping(node, path)
        if isinstance(node, SequenceNode):
            for position, child in enumerate(node.value):
                self._lines[(*path, position)] = child.start_mark.line + 1
            return [self.value(child, (*path, position)) for position, child in enumerate(node.value)]
        if str(node.tag) == _TIMESTAMP:  # no schema has dates, but a text may look like a date
            return node.value
        try:
            return self._yaml.constructor.construct_object(node)
        except (YAMLError, ValueError) as error:
            self._note(path, line, f"cannot be read: {str(error).splitlines()[0]}")
            return None

    def _note(self, path: Keys, line: int, message: str) -> None:
        self._problems.append(Problem(dotted(path), line, message))
