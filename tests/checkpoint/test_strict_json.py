"""JSON is read strictly, and written JSON reads back the same."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedConfig

from surgery.checkpoint import dump_json, load_config, load_json
from surgery.errors import CheckpointError


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"{} {}", "not valid JSON"),
        (b"[]", "JSON object, not list"),
        (b"3", "JSON object"),
        (b'{"a": 1, "a": 2}', "'a' twice"),
        (b'{"x": {"a": 1, "b": 0, "a": 2}}', "'a' twice"),
        (b'{"a": NaN}', "NaN"),
        (b'{"a": Infinity}', "Infinity"),
        (b'{"a": -Infinity}', "Infinity"),
        (b'{"a": 1e400}', "too large for a float"),
        (b'{"a": "\xff"}', "UTF-8"),
        (b'\xef\xbb\xbf{"a": 1}', "BOM"),
        ('{"a": 1}'.encode("utf-16"), "UTF-8"),
        (b'{"a": "\\udfff"}', "UTF-8"),
        (b'{"a": ' + b"[" * 70 + b"]" * 70 + b"}", "deeper"),
        (b'{"a": "' + b"x" * 2000 + b'"}', "larger than 1,000 bytes"),
    ],
)
def test_refused_json(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message) as error:
        load_json(path, 1000)
    assert "config.json" in str(error.value)


@pytest.mark.parametrize("name", ["Infinity", "-Infinity"])
def test_a_config_may_hold_infinity(name: str, tmp_path: Path) -> None:
    """transformers reads both spellings; the one that it writes itself is JSON and no number."""
    path = tmp_path / "config.json"
    path.write_text(f'{{"time_step_limit": [0.0, {name}], "rope_theta": 1.0}}')
    found = load_config(path)
    assert found == {"time_step_limit": [0.0, {"__float__": name}], "rope_theta": 1.0}
    path.write_text(dump_json(found))
    assert load_config(path) == found
    assert PreTrainedConfig.from_json_file(path).time_step_limit == [0.0, float(name)]


def test_a_config_may_not_hold_nan(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text('{"a": NaN}')
    with pytest.raises(CheckpointError, match="NaN"):
        load_config(path)


def test_missing_json(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"gone\.json cannot be read"):
        load_json(tmp_path / "gone.json")


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(st.dictionaries(st.text(), JSON, max_size=5))
@settings(max_examples=60, deadline=None)
def test_what_is_written_is_read_back(tmp_path_factory: pytest.TempPathFactory, obj: dict[str, Any]) -> None:
    path = tmp_path_factory.mktemp("json") / "x.json"
    text = dump_json(obj)
    assert text.endswith("}\n") and text.isascii()
    path.write_text(text)
    loaded = load_json(path)
    assert loaded == obj and list(loaded) == list(obj)
    assert dump_json(loaded) == text


def test_nan_is_not_written() -> None:
    with pytest.raises(ValueError, match="JSON"):
        dump_json({"a": float("nan")})
