"""Random damage to headers, indexes and configs: only our own errors escape, nothing is written, memory is bounded.

SURGERY_FUZZ_EXAMPLES sets the number of examples of each test; the default keeps the suite quick.
"""

import contextlib
import copy
import itertools
import json
import os
import struct
import tempfile
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from surgery.checkpoint import Checkpoint, open_checkpoint, resolve, safe_relative
from surgery.errors import CheckpointError, UsageError

from .builders import listing, raw, sharded, single

EXAMPLES = int(os.environ.get("SURGERY_FUZZ_EXAMPLES", "60"))
fuzzed = settings(
    max_examples=EXAMPLES, deadline=None, derandomize=EXAMPLES <= 1000, suppress_health_check=list(HealthCheck)
)
MEMORY = 8_000_000


# A long run is meant to be long.
pytestmark = pytest.mark.timeout(max(300, EXAMPLES))


EVIL_NUMBERS = st.sampled_from([0, -1, 1, 3, 4, 7, 2**31, 2**53 + 1, 2**63 - 1, 2**63, 2**64, 10**30, 0.5, 1e308])
EVIL_TEXT = st.sampled_from(
    [
        *(
            "",
            "F32",
            "F4",
            "BF16",
            "..",
            "../x",
            "/etc/passwd",
            "a\0b",
            "CON",
            "C:\\x",
            "x" * 5000,
            "\ud800",
            "\x1b[2J",
        ),
        *("model.safetensors", "model-00001-of-00002.safetensors", "config.json", "__metadata__", "weight_map"),
    ]
)
EVIL = st.recursive(
    st.none() | st.booleans() | EVIL_NUMBERS | EVIL_TEXT | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(EVIL_TEXT | st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)


@st.composite
def altered(draw: st.DrawFn, document: Any) -> Any:
    """A JSON document with a few of its parts replaced, removed, renamed or added, anywhere in it."""
    document = copy.deepcopy(document)
    for _ in range(draw(st.integers(1, 3))):
        node = document
        while True:
            keys: list[Any] = list(node) if isinstance(node, dict) else list(range(len(node)))
            if not keys:
                break
            key = draw(st.sampled_from(keys))
            if isinstance(node[key], dict | list) and draw(st.booleans()):
                node = node[key]
                continue
            change = draw(st.sampled_from(["replace", "remove", "rename", "add"]))
            if change == "remove":
                del node[key]
            elif change == "replace" or isinstance(node, list):
                node[key] = draw(EVIL)
            else:
                node[draw(EVIL_TEXT)] = draw(EVIL) if change == "add" else node.pop(key)
            break
    return document


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """Bytes with a few flips, cuts, repeats and insertions."""
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(len(content) - 1, 0)))
        to = draw(st.integers(at, min(at + 40, len(content))))
        piece = draw(
            st.sampled_from(
                [b"", b"\0", b"\xff", b'"', b"{", b"}", b"[" * 3000, b",", b"NaN", b"-", b"9" * 50, b"1e999"]
            )
            | st.binary(max_size=6)
            | st.just(content[at:to] * 2)
        )
        content = content[:at] + piece + content[to:]
    return content


def opened(folder: Path) -> Checkpoint | None:
    """Open a folder: a checkpoint, or None where it is refused as it should be."""
    before = listing(folder.parent)
    tracemalloc.start()
    try:
        return open_checkpoint(resolve(folder))
    except (CheckpointError, UsageError) as error:
        assert error.exit_code == 2 and 10 < len(str(error)) < 6000
        str(error).encode()  # printable, whatever the file said
        return None
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < MEMORY, f"a small hostile folder cost {peak:,} bytes"
        assert listing(folder.parent) == before, "opening wrote something"


def consistent(model: Checkpoint) -> None:
    """What was accepted must be as safe as it claims."""
    for shard in model.shards:
        safe_relative(shard)
        assert (model.folder / shard).resolve().is_relative_to(model.folder.resolve())
        covered = sorted((t.begin, t.end) for t in model.tensors.values() if t.shard == shard)
        assert all(a[1] == b[0] for a, b in itertools.pairwise(covered))
        assert covered[-1][1] == (model.folder / shard).stat().st_size
    if model.index is not None:
        assert model.index["weight_map"] == {t.name: t.shard for t in model.tensors.values()}


with tempfile.TemporaryDirectory() as scratch:
    WHOLE = (single(Path(scratch) / "s") / "model.safetensors").read_bytes()
    INDEX = json.loads((sharded(Path(scratch) / "m") / "model.safetensors.index.json").read_text())
LENGTH = struct.unpack("<Q", WHOLE[:8])[0]
HEADER, DATA = json.loads(WHOLE[8 : 8 + LENGTH]), WHOLE[8 + LENGTH :]
CONFIG = {
    "model_type": "llama",
    "rope_scaling": {"factor": 2.0, "type": "yarn"},
    "layer_types": ["full_attention", "sliding_attention"],
    "torch_dtype": "bfloat16",
}


def header_files() -> st.SearchStrategy[bytes]:
    lengths = st.sampled_from([0, 1, 2, LENGTH - 1, LENGTH + 1, len(WHOLE), 10**8, 10**8 + 1, 2**63, 2**64 - 1])
    return (
        damaged(WHOLE)
        | altered(HEADER).map(lambda header: _file(json.dumps(header).encode(), DATA))
        | damaged(json.dumps(HEADER).encode()).map(lambda header: _file(header, DATA))
        | lengths.map(lambda length: struct.pack("<Q", length) + WHOLE[8:])
        | st.binary(max_size=200)
    )


def _file(header: bytes, data: bytes) -> bytes:
    return struct.pack("<Q", len(header)) + header + data


@given(header_files())
@fuzzed
def test_headers(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder = single(Path(scratch) / "m")
        path = folder / "model.safetensors"
        path.write_bytes(content)
        model = opened(folder)
        if model is None:
            return
        consistent(model)
        # Stricter than safetensors in places, never laxer.
        with safe_open(path, "np") as theirs:
            assert set(theirs.keys()) == set(model.tensors)
            for name, info in model.tensors.items():
                assert theirs.get_slice(name).get_shape() == list(info.shape)
                assert theirs.get_slice(name).get_dtype() == info.dtype


@given(altered(INDEX).map(lambda index: json.dumps(index).encode()) | damaged(json.dumps(INDEX).encode()))
@fuzzed
def test_indexes(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        single(Path(scratch) / "x")  # something to escape to
        folder = sharded(Path(scratch) / "m")
        (folder / "model.safetensors.index.json").write_bytes(content)
        model = opened(folder)
        if model is not None:
            consistent(model)


@given(altered(CONFIG).map(lambda config: json.dumps(config).encode()) | damaged(json.dumps(CONFIG).encode()))
@fuzzed
def test_configs(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder = single(Path(scratch) / "m")
        (folder / "config.json").write_bytes(content)
        model = opened(folder)
        if model is not None:
            assert model.config == json.loads(content)


@given(st.text(max_size=40) | EVIL_TEXT.map(lambda text: text[:300]) | st.text("./~\\a-:\0", max_size=10))
@fuzzed
def test_arguments(text: str) -> None:
    """Whatever is typed for a model: a folder that exists, or one of our errors. The hub is not asked."""
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as scratch, pytest.MonkeyPatch.context() as patch:
        import huggingface_hub

        def offline(*_: object, **__: object) -> None:
            raise OSError("offline")

        patch.setattr(huggingface_hub, "snapshot_download", offline)
        patch.chdir(scratch)
        with contextlib.suppress(CheckpointError, UsageError):
            assert resolve(text).folder.is_dir()
        assert not list(Path(scratch).iterdir())
    assert Path.cwd() == before


def test_the_fuzzer_reaches_both_answers() -> None:
    """The undamaged documents are accepted and a damaged one is not: the tests above can fail either way."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = single(Path(scratch) / "m")
        raw(folder / "model.safetensors", HEADER, DATA)
        assert opened(folder) is not None
        raw(folder / "model.safetensors", HEADER, DATA + b"x")
        assert opened(folder) is None
