"""JSON that is read strictly, and written in the same form each time.

Python accepts equal keys (the last one wins), NaN, and documents of any depth. Other programs may read such a file
differently, so it is rejected here.
"""

import json
import math
import stat
from pathlib import Path
from typing import Any, NoReturn

from surgery.checkpoint.names import quote
from surgery.errors import CheckpointError

CONFIG_LIMIT = 16 * 1024 * 1024
INDEX_LIMIT = 100_000_000
_DEEPEST = 64
# One byte of JSON can take a hundred bytes as Python objects. Two million values keep the worst document below about
# 500 MB; the largest published models have some 100,000 tensors with about ten values each.
_MOST_VALUES = 2_000_000


def load_config(path: Path) -> dict[str, Any]:
    """Read a model's config.json: as `load_json`, and Infinity is accepted, since transformers reads and wrote it.

    Published hybrids hold `"time_step_limit": [0.0, Infinity]`. The value becomes `{"__float__": "Infinity"}`, which is
    how transformers 5 writes and reads it, is JSON, and is no number where one is needed.
    """
    return load_json(path, infinity=True)


def load_json(path: Path, limit: int = CONFIG_LIMIT, *, infinity: bool = False) -> dict[str, Any]:
    """Read a JSON object of at most `limit` bytes; with `infinity`, as `load_config` says.

    Raises:
        CheckpointError: the file is missing, not a regular file, too large, not UTF-8, not JSON, not an object, too
            deep, or contains duplicate keys, NaN or Infinity.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # opening a named pipe would wait forever
            raise CheckpointError(f"{path.name} is not a regular file")
        with path.open("rb") as file:
            # Python allocates the requested size, so the request is not larger than the file.
            data = file.read(min(limit, status.st_size) + 1)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path.name} cannot be read: {_reason(error)}") from error
    if len(data) > limit:
        raise CheckpointError(f"{path.name} is larger than {limit:,} bytes, the most that is read")
    return parse_json(data, path.name, infinity=infinity)


def parse_json(data: bytes, where: str, *, infinity: bool = False) -> dict[str, Any]:
    """Parse a JSON object from bytes; `where` names the file in the errors. `infinity`: see `load_config`.

    Raises:
        CheckpointError: as `load_json`, without the errors of the file itself.
    """
    if data.count(b",") + data.count(b"[") + data.count(b"{") > _MOST_VALUES:
        raise CheckpointError(f"{where} contains more than {_MOST_VALUES:,} values, the most that is read")
    try:
        text = data.decode("utf-8")
        parsed = json.loads(
            text,
            object_pairs_hook=_unique,
            parse_constant=_tagged_infinity if infinity else _no_constant,
            parse_float=_finite,
            parse_int=_integer,
        )
        if "\\u" in text:  # an escape can encode half a surrogate pair, which cannot be written back
            json.dumps(parsed, ensure_ascii=False).encode("utf-8")
    except _RefusedError as error:
        raise CheckpointError(f"{where} {error}") from None
    except UnicodeError as error:
        raise CheckpointError(f"{where} is not valid UTF-8: {error}") from error
    except RecursionError as error:
        raise CheckpointError(f"{where} is nested deeper than {_DEEPEST} levels") from error
    except ValueError as error:
        raise CheckpointError(f"{where} is not valid JSON: {error}") from error
    if not isinstance(parsed, dict):
        raise CheckpointError(f"{where} must contain a JSON object, not {type(parsed).__name__}")
    _bound_depth(parsed, where)
    return parsed


def dump_json(obj: Any) -> str:
    """The form of all JSON files of surgery: two spaces, keys in the given order, ASCII, a final newline.

    Raises:
        ValueError: `obj` contains NaN or Infinity.
    """
    return json.dumps(obj, indent=2, allow_nan=False) + "\n"


class _RefusedError(Exception):
    """The reason to reject the text, raised in the hooks of the json module."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise _RefusedError(f"contains the key {quote(twice)} twice")
    return result


def _no_constant(name: str) -> NoReturn:
    raise _RefusedError(f"contains {name}, which is not JSON")


def _tagged_infinity(name: str) -> dict[str, str]:
    if name == "NaN":
        _no_constant(name)
    return {"__float__": name}


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise _RefusedError(f"contains the number {quote(text)}, which is too large for a float")
    return number


def _integer(text: str) -> int:
    # Longer than any count or offset; Python needs quadratic time for long numbers.
    if len(text) > 40:
        raise _RefusedError(f"contains an integer of {len(text)} digits")
    return int(text)


def _bound_depth(root: dict[str, Any], where: str) -> None:
    level: list[Any] = [root]
    for _ in range(_DEEPEST):
        level = [
            child
            for node in level
            for child in (node.values() if isinstance(node, dict) else node)
            if isinstance(child, dict | list)
        ]
        if not level:
            return
    raise CheckpointError(f"{where} is nested deeper than {_DEEPEST} levels")


def _reason(error: OSError | ValueError) -> str:
    return getattr(error, "strerror", None) or str(error)
