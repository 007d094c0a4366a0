"""Disk space is checked before any work, and syncing never opens a source for writing."""

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from surgery.checkpoint import free_bytes, fsync_file, require_space
from surgery.errors import CheckpointError


def test_space(tmp_path: Path) -> None:
    assert free_bytes(tmp_path / "not" / "yet") == pytest.approx(free_bytes(tmp_path), rel=0.05)
    require_space(tmp_path / "not" / "yet", 1)
    with pytest.raises(CheckpointError, match=r"1,000,000,000,000,000,000 bytes .*[\d,]+ .*are free"):
        require_space(tmp_path, 10**18)


@pytest.mark.skipif(sys.platform == "win32", reason="the flag is read from /proc or not at all")
def test_fsync_opens_for_reading_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A linked shard is fsynced through its new name; the source must not be opened for writing even so."""
    source = tmp_path / "x"
    source.write_bytes(b"x")
    flags: list[int] = []
    real = os.open

    def watch(path: Any, flag: int, *rest: Any) -> int:
        flags.append(flag)
        return real(path, flag, *rest)

    monkeypatch.setattr(os, "open", watch)
    fsync_file(source)
    assert flags == [os.O_RDONLY]
