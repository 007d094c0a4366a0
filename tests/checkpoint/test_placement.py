"""Placement of unchanged files: the right bytes, by the requested method, the source untouched."""

import errno
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from surgery.checkpoint import place_file
from surgery.checkpoint import placement as placement_module
from surgery.errors import CheckpointError

from .builders import hub_snapshot, listing

CONTENT = bytes(range(256)) * 5000


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(placement_module, "_CHUNK", 300_000)  # several reports of progress from a small file
    path = tmp_path / "source" / "x"
    path.parent.mkdir()
    path.write_bytes(CONTENT)
    path.chmod(0o444)
    return path


@pytest.mark.parametrize("mode", ["auto", "copy", "link"])
def test_place(mode: Any, source: Path, tmp_path: Path) -> None:
    before, seen = source.lstat().st_mtime_ns, []
    placed = place_file(source, tmp_path / "y", mode, seen.append)
    assert placed in {"auto": ("reflink", "copied"), "copy": ("copied",), "link": ("linked",)}[mode]
    assert (tmp_path / "y").read_bytes() == CONTENT and sum(seen) == len(CONTENT)
    assert source.samefile(tmp_path / "y") == (mode == "link")
    assert source.lstat().st_mtime_ns == before and source.read_bytes() == CONTENT
    if mode != "link":
        assert (tmp_path / "y").stat().st_mode & 0o200, "the copy is ours to change, whatever the source's mode"


def _not_here(*_: object) -> int:
    raise OSError(errno.EXDEV, "Invalid cross-device link")


@pytest.mark.parametrize("missing", [["_copy_file_range"], ["_copy_file_range", "_sendfile"]])
def test_each_way_to_copy(missing: list[str], source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in missing:
        monkeypatch.setattr(placement_module, name, _not_here)
    seen: list[int] = []
    assert place_file(source, tmp_path / "y", "copy", seen.append) == "copied"
    assert (tmp_path / "y").read_bytes() == CONTENT and sum(seen) == len(CONTENT) and len(seen) > 1


def test_a_way_that_stops_halfway_is_continued(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = placement_module._copy_file_range

    def half(reading: int, writing: int, offset: int, count: int) -> int:
        return real(reading, writing, offset, count) if offset < 600_000 else _not_here()

    monkeypatch.setattr(placement_module, "_copy_file_range", half)
    assert place_file(source, tmp_path / "y", "copy") == "copied"
    assert (tmp_path / "y").read_bytes() == CONTENT


@pytest.mark.skipif(sys.platform != "linux", reason="FICLONE is Linux's")
def test_reflink_is_tried_first_and_said(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fcntl

    calls: list[tuple[int, int, int]] = []

    def clone(target: int, request: int, origin: int) -> int:
        calls.append((target, request, origin))
        os.write(target, CONTENT)
        return 0

    monkeypatch.setattr(fcntl, "ioctl", clone)
    seen: list[int] = []
    assert place_file(source, tmp_path / "y", "auto", seen.append) == "reflink"
    assert calls[0][1] == 0x40049409 and seen == [len(CONTENT)]
    calls.clear()
    assert place_file(source, tmp_path / "z", "copy") == "copied" and not calls


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_failing_disk_is_an_error_and_leaves_no_half(
    code: int, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(reading: int, writing: int, offset: int, count: int) -> int:
        os.write(writing, b"half")
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(placement_module, "_copy_file_range", full)
    with pytest.raises(CheckpointError, match=os.strerror(code)):
        place_file(source, tmp_path / "y")
    assert not (tmp_path / "y").exists()


def test_interrupt_leaves_no_half(source: Path, tmp_path: Path) -> None:
    def interrupt(count: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        place_file(source, tmp_path / "y", "copy", interrupt)
    assert not (tmp_path / "y").exists()


def test_a_source_that_shrinks_is_noticed(source: Path, tmp_path: Path) -> None:
    source.chmod(0o644)

    def shrink(count: int) -> None:
        os.truncate(source, 400_000)

    with pytest.raises(CheckpointError, match="changed while it was copied"):
        place_file(source, tmp_path / "y", "copy", shrink)
    assert not (tmp_path / "y").exists()


@pytest.mark.parametrize("mode", ["auto", "copy", "link"])
def test_an_existing_target_is_never_written(mode: Any, source: Path, tmp_path: Path) -> None:
    """The target's name could be a link to the source itself, or to anything else."""
    (tmp_path / "hard").hardlink_to(source)
    (tmp_path / "soft").symlink_to(source)
    (tmp_path / "dangling").symlink_to(tmp_path / "elsewhere")
    before = listing(tmp_path)
    for name in ("hard", "soft", "dangling"):
        with pytest.raises(CheckpointError, match="cannot be placed"):
            place_file(source, tmp_path / name, mode)
    assert listing(tmp_path) == before


@pytest.mark.parametrize("mode", ["auto", "copy", "link"])
def test_hub_cache_links_become_files(mode: Any, tmp_path: Path) -> None:
    link = hub_snapshot(tmp_path) / "model.safetensors"
    place_file(link, tmp_path / "y", mode)
    assert not (tmp_path / "y").is_symlink() and (tmp_path / "y").read_bytes() == link.read_bytes()
    assert link.samefile(tmp_path / "y") == (mode == "link")


@pytest.mark.parametrize(("code", "message"), [(errno.EXDEV, "different file systems"), (errno.EPERM, "not permitted")])
def test_link_where_it_cannot_be(
    code: int, message: str, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Path, target: Path) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    with pytest.raises(CheckpointError, match=message) as error:
        place_file(source, tmp_path / "y", "link")
    assert "Copy instead" in str(error.value)


def test_link_across_real_file_systems(source: Path) -> None:
    other = Path("/dev/shm")
    if not other.is_dir() or other.stat().st_dev == source.stat().st_dev:
        pytest.skip("no second file system")
    target = other / f"place-{os.getpid()}"
    try:
        with pytest.raises(CheckpointError, match="different file systems"):
            place_file(source, target, "link")
        assert place_file(source, target, "auto") == "copied"
        assert target.read_bytes() == CONTENT
    finally:
        target.unlink(missing_ok=True)


def test_sources_that_are_no_files(tmp_path: Path) -> None:
    for name in ("folder", "gone", "loop", "pipe"):
        path = tmp_path / name
        if name == "folder":
            path.mkdir()
        elif name == "loop":
            path.symlink_to(path)
        elif name == "pipe":
            os.mkfifo(path)
        with pytest.raises(CheckpointError, match=name):
            place_file(path, tmp_path / "y")
    assert not (tmp_path / "y").exists()


def test_missing_folders_are_made_and_an_error_there_is_clear(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"x")
    place_file(source, tmp_path / "a" / "b" / "c")
    assert (tmp_path / "a" / "b" / "c").read_bytes() == b"x"
    with pytest.raises(CheckpointError, match="cannot be placed"):
        place_file(source, source / "under a file" / "c")
