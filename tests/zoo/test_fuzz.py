"""Random damage to manifests, ledgers and the configs of models: only clear errors, nothing written, bounded memory."""

from __future__ import annotations

import json
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from surgery.errors import SurgeryError
from surgery.zoo.ledger import Ledger, read_ledger
from surgery.zoo.manifest import Manifest, read_manifest
from surgery.zoo.plan import plan_zoo
from surgery.zoo.zoo import open_zoo
from tests.anatomy.builders import bare_config, bare_source
from tests.checkpoint.builders import listing
from tests.checkpoint.test_fuzz import EXAMPLES, altered, damaged, fuzzed
from tests.zoo.conftest import write_manifest

pytestmark = pytest.mark.timeout(max(300, EXAMPLES))
# An example costs more here than that of a header; the three tests together have as many as one there.
fuzzed = settings(fuzzed, max_examples=EXAMPLES // 3)
MEMORY = 16_000_000
SECONDS = 20.0  # far above what any takes, also on a busy machine: a guard against quadratic time

MANIFEST: dict[str, Any] = {
    "models": [
        {"path": "models/*"},
        {"path": "m", "name": "x", "verify": {"layers": 2}, "change": {"ssmax": {"form": "bias", "layers": "0-1"}}},
        {"hub": "org/name", "revision": "main", "limits": {"disk": "3 GB"}},
    ],
    "operations": [{"name": "ssmax", "form": "anchored", "start": {"scale": 0.5}}, {"name": "rope", "factor": 2.0}],
    "output": "out",
    "layout": "{name}-{operations}",
    "limits": {"time": "1h30m", "memory": "4 GB"},
    "parallel": {"items": 2, "keep_free": "1 GB"},
    "verify": "files",
    "retries": 2,
}


def bounded(task: Callable[[], Any]) -> Any:
    """What the task gives, or the expected error; never more memory or time than a small document is worth."""
    tracemalloc.start()
    began = time.process_time()
    try:
        return task()
    except SurgeryError as error:
        assert 10 < len(str(error)) < 20_000
        str(error).encode()
        return error
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < MEMORY and time.process_time() - began < SECONDS


@given(altered(MANIFEST).map(lambda document: json.dumps(document).encode()) | damaged(json.dumps(MANIFEST).encode()))
@fuzzed
def test_manifests(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        bare_source(Path(scratch) / "models" / "a")
        path = Path(scratch) / "zoo.yaml"
        path.write_bytes(content)
        before = listing(Path(scratch))
        found = bounded(lambda: read_manifest(path))
        if isinstance(found, Manifest):
            bounded(lambda: open_zoo(path))
        assert listing(Path(scratch)) == before


with tempfile.TemporaryDirectory() as _scratch:
    with Ledger(Path(_scratch) / "ledger") as _ledger:
        _ledger.write("run", run="r1", engine="local", resumed=False, items=2)
        _ledger.write("started", run="r1", item="a", fingerprint="f" * 64, work="w", attempt=1, replaces=[1, 2])
        _ledger.write("done", run="r1", item="a", fingerprint="f" * 64, work="w", seconds=1.0, placed="copied")
        _ledger.write("failed", run="r1", item="b", fingerprint=None, work="w", why="time", message="slow")
    LINES = (Path(_scratch) / "ledger").read_bytes().splitlines()


@st.composite
def ledgers(draw: st.DrawFn) -> bytes:
    """Lines of a ledger, one of them damaged or altered; or any bytes of it."""
    lines = list(LINES)
    at = draw(st.integers(0, len(lines) - 1))
    if draw(st.booleans()):
        lines[at] = json.dumps(draw(altered(json.loads(lines[at])))).encode()
    else:
        lines[at] = draw(damaged(lines[at]))
    content = b"\n".join(lines) + b"\n"
    return content[: draw(st.integers(0, len(content)))] if draw(st.booleans()) else content


@given(ledgers())
@fuzzed
def test_ledgers(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        bare_source(Path(scratch) / "models" / "a")
        manifest = write_manifest(Path(scratch), layout="{name}")
        zoo = open_zoo(manifest)
        zoo.ledger.parent.mkdir(parents=True)
        zoo.ledger.write_bytes(content)
        before = listing(Path(scratch))
        found = bounded(lambda: read_ledger(zoo.ledger))
        if not isinstance(found, SurgeryError):
            # Whatever it says, it can be planned and shown: names are no paths, and values are no code.
            bounded(zoo.summary)
            plan = plan_zoo(zoo.manifest, zoo.items, found, output=zoo.output)
            assert [row.item.name for row in plan.rows] == ["a"]
        assert listing(Path(scratch)) == before


CONFIGS = {
    family: bare_config(
        family,
        rope_parameters={"rope_type": "yarn", "factor": 2.0, "rope_theta": 1e4},
        layer_types=["full_attention"] * 4,
        torch_dtype="bfloat16",
        tie_word_embeddings=True,
        architectures=["LlamaForCausalLM"] if family == "llama" else ["Gemma2ForCausalLM"],
    )
    for family in ("llama", "gemma2")
}


@given(
    st.sampled_from(sorted(CONFIGS)).flatmap(
        lambda family: (
            altered(CONFIGS[family]).map(lambda config: json.dumps(config).encode())
            | damaged(json.dumps(CONFIGS[family]).encode())
        )
    ),
    st.sampled_from(["ssmax", "rope"]),
)
@fuzzed
def test_configs_up_to_the_plan(content: bytes, operation: str) -> None:
    """A hostile config.json costs one row of a plan: refused with a reason, or planned; no unforeseen error."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = bare_source(Path(scratch) / "models" / "a")
        (folder / "config.json").write_bytes(content)
        zoo = open_zoo(write_manifest(Path(scratch), operations=[{"name": operation}]))
        before = listing(Path(scratch))
        plan = bounded(zoo.plan)
        (row,) = plan.rows
        assert row.state in ("ready", "refused") and "unexpected error" not in row.reason, row.reason
        assert listing(Path(scratch)) == before


def test_the_fuzzer_reaches_both_answers() -> None:
    """The undamaged documents are accepted: the tests above can fail either way."""
    with tempfile.TemporaryDirectory() as scratch:
        assert isinstance(read_manifest(MANIFEST), Manifest)
        (Path(scratch) / "ledger").write_bytes(b"\n".join(LINES) + b"\n")
        assert read_ledger(Path(scratch) / "ledger").entries.keys() == {"a", "b"}
        for family, config in CONFIGS.items():
            folder = bare_source(Path(scratch) / "models" / family, family)
            (folder / "config.json").write_text(json.dumps(config))
        zoo = open_zoo(write_manifest(Path(scratch)))
        assert {row.state for row in zoo.plan().rows} == {"ready"}, [row.reason for row in zoo.plan().rows]
