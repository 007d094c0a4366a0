"""Outputs on disks that are full, read-only, or other than the source's: small file systems of their own, as root."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from surgery.checkpoint import load_json, open_checkpoint
from surgery.conversion import convert, execution, revert
from surgery.errors import CheckpointError, SurgeryError
from surgery.zoo.ledger import Ledger, read_ledger
from surgery.zoo.run import run_zoo
from surgery.zoo.zoo import open_zoo
from tests.checkpoint.builders import listing
from tests.conversion.conftest import MakeKind, tree
from tests.zoo.conftest import states, write_manifest

PAGE = 4096


@contextlib.contextmanager
def file_system(place: Path, options: str) -> Iterator[Path]:
    """A tmpfs of its own at ``place``; skips where that is not allowed."""
    place.mkdir(exist_ok=True)
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("mounting a file system needs root on Linux")
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "surgery-test", str(place)], check=False, capture_output=True, text=True
    )
    if done.returncode != 0:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


@pytest.fixture
def no_look_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check before any work would refuse at once; here the disk fills up while it is written to."""
    monkeypatch.setattr(execution, "require_space", lambda *_: None)


def fill_up(source: Path, place: Path, sizes: Iterator[int] | range, what: str) -> int:
    """Convert into file systems of each size; returns how many were too small. Stops at the first that is not."""
    for number, size in enumerate(sizes):
        with file_system(place, f"{what}={size}"):
            try:
                convert(source, output=place / "out", mode="copy")
            except SurgeryError as error:
                assert "No space left" in error.message, error.message
                # The lock of a run may stay where even its removal fails; of the output nothing does.
                assert [path.name for path in place.iterdir() if not path.name.endswith(".lock")] == []
            else:
                assert open_checkpoint(place / "out").config["surgery"]["format_version"] == 1
                return number
    raise AssertionError("it never fitted")


def test_a_full_disk_at_every_page_and_every_name(make_kind: MakeKind, tmp_path: Path, no_look_ahead: None) -> None:
    source = make_kind("adorned")
    before = listing(source)
    pages = fill_up(source, tmp_path / "disk", range(PAGE, 1000 * PAGE, PAGE), "size")
    inodes = fill_up(source, tmp_path / "disk", range(2, 200), "nr_inodes")
    print(f"\n{pages} sizes and {inodes} counts of names were too small")
    assert pages > 30 and inodes > 15 and listing(source) == before


def test_space_is_asked_for_before_any_work(make_kind: MakeKind, tmp_path: Path) -> None:
    with file_system(tmp_path / "disk", "size=256k") as disk:
        with pytest.raises(CheckpointError, match=r"are needed at .* are free"):
            convert(make_kind("single"), output=disk / "out", mode="copy")
        assert [path.name for path in disk.iterdir()] == []


def test_another_file_system(make_kind: MakeKind, tmp_path: Path) -> None:
    """Copied where links are impossible, refused where links are asked for; and back again."""
    source = make_kind("adorned")
    with file_system(tmp_path / "disk", "size=64m") as disk:
        with pytest.raises(CheckpointError, match="different file systems"):
            convert(source, output=disk / "linked", mode="link")
        assert list(disk.iterdir()) == []
        result = convert(source, output=disk / "out")
        assert set(result.placed.values()) == {"copied"}
        assert tree(disk / "out") == tree(convert(source, output=tmp_path / "here").output)
        revert(disk / "out", output=tmp_path / "back")
    assert tree(tmp_path / "back") == tree(source)


def test_a_read_only_source_and_a_read_only_output(make_kind: MakeKind, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    with file_system(disk, "size=64m"):
        convert(make_kind("single"), output=disk / "old")
        revert(disk / "old", output=disk / "model")
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        out = convert(disk / "model", output=tmp_path / "out").output
        assert load_json(out / "config.json")["surgery"]["operations"][0]["name"] == "ssmax"
        with pytest.raises(SurgeryError, match="Read-only"):
            convert(disk / "model", output=disk / "new")
        with pytest.raises(SurgeryError, match="Read-only"):
            convert(disk / "model", output=disk / "old", force=True)
        assert sorted(path.name for path in disk.iterdir()) == ["model", "old"]


def test_a_zoo_whose_disk_is_full(make_kind: MakeKind, tmp_path: Path) -> None:
    """The item fails with a reason, the ledger stays whole, and with space the same command continues."""
    disk = tmp_path / "disk"
    with file_system(disk, "size=700k"):
        content: dict[str, Any] = {
            "models": [{"path": str(make_kind("single"))}],
            "output": str(disk / "out"),
            "placement": "copy",
            "layout": "{name}",
            "parallel": {"keep_free": 1},
        }
        manifest = write_manifest(tmp_path, **content)
        (row,) = open_zoo(manifest).plan().rows
        assert row.state == "refused" and "of disk" in row.reason
        zoo = open_zoo(manifest)
        assert set(states(run_zoo(zoo)).values()) == {"refused"}
        # No room for a line of the ledger: nothing is begun, and what it held is still there.
        before = read_ledger(zoo.ledger).entries
        with contextlib.suppress(OSError), (disk / "ballast").open("wb", buffering=0) as file:
            while file.write(bytes(PAGE)):
                pass
        with pytest.raises(CheckpointError, match="No space left"), Ledger(zoo.ledger) as ledger:
            for _ in range(100):
                ledger.write("run", run="r", filler="x" * 500)
        assert read_ledger(zoo.ledger).entries == before
        (disk / "ballast").unlink()
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        assert set(states(run_zoo(zoo)).values()) == {"done"}
