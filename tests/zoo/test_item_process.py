"""The process of an item ends cleanly, and nothing that it wrote for a while stays."""

from __future__ import annotations

import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from surgery.zoo.item_process import ItemProcess, request_for, run_isolated
from tests.zoo.conftest import MakeZoo


def ended(request: Any, log: Path) -> ItemProcess:
    process = ItemProcess(request, log)
    while process.poll(lambda event: None) is None:
        time.sleep(0.02)
    return process


@pytest.fixture
def system_temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The machine's folder for temporary files, this test's alone: other tests write to the common one meanwhile."""
    folder = tmp_path / "system"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.mark.parametrize("fails", [False, True])
def test_the_interpreter_ends_without_a_crash(make_zoo: MakeZoo, tmp_path: Path, fails: bool) -> None:
    """A thread of it waits on the pipe that it was started with, to the end."""
    row = make_zoo(["llama"]).plan().rows[0]
    request = request_for(row)
    if fails:
        request["source_fingerprint"] = "another"
    process = ended(request, tmp_path / "item.log")
    assert process._process.returncode == 0
    assert (tmp_path / "item.log").exists() == fails
    assert not fails or "Fatal" not in (tmp_path / "item.log").read_text()


def test_what_a_killed_item_wrote_for_a_while_is_removed(
    make_zoo: MakeZoo, make_source: Any, tmp_path: Path, system_temporary: Path
) -> None:
    """The copy of the first layers for a verification, after a kill at the time limit and after a kill from outside."""
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "m").symlink_to(make_source("llama"))
    row = make_zoo([], verify={"layers": 1}).plan().rows[0]
    row = replace(row, item=replace(row.item, output=tmp_path / "out" / "m"))
    process = ItemProcess(request_for(row), tmp_path / "item.log")
    scratch = tmp_path / "item.tmp"
    until = time.monotonic() + 60
    while not list(scratch.glob("surgery-*")) and time.monotonic() < until:
        assert process.poll(lambda event: None) is None
        time.sleep(0.01)
    assert list(scratch.glob("surgery-*")), "it writes there"
    process.kill("time", "took too long")
    while process.poll(lambda event: None) is None:
        time.sleep(0.02)
    assert not scratch.exists() and not list(system_temporary.glob("surgery-*"))
    (scratch / "surgery-left-by-a-run-that-was-killed").mkdir(parents=True)
    assert run_isolated(request_for(row), tmp_path / "item.log").status == "done"
    assert not scratch.exists()
