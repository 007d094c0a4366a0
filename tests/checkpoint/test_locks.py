"""One run at a time on one output folder, also without locks in the file system."""

import errno
import multiprocessing
from pathlib import Path

import pytest

from surgery.checkpoint import StagedFolder
from surgery.checkpoint import locks as locks_module
from surgery.errors import CheckpointError, UsageError

from .test_staged_folder import NEW, content, fill, names, stage


def test_two_runs_on_one_output(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with StagedFolder(out) as first:
        fill(first.path, NEW)
        with pytest.raises(CheckpointError, match="another run is working on out"), StagedFolder(out):
            pass
        with StagedFolder(tmp_path / "out2") as other:
            fill(other.path, "other")
            other.commit()
        assert first.path.exists(), "a refused run must not clear a living one's folder"
        first.commit()
    assert content(out) == NEW and names(tmp_path) == ["out", "out2"]


def _attempt(out: str, barrier: object, results: object) -> None:
    barrier.wait()  # type: ignore[attr-defined]
    try:
        stage(Path(out), NEW)
        results.put("done")  # type: ignore[attr-defined]
    except (UsageError, CheckpointError) as error:
        results.put(type(error).__name__)  # type: ignore[attr-defined]


def test_a_race_has_one_winner(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(4), context.Queue()
    runs = [context.Process(target=_attempt, args=(str(tmp_path / "out"), barrier, results)) for _ in range(4)]
    for run in runs:
        run.start()
    outcomes = [results.get(timeout=30) for _ in runs]
    for run in runs:
        run.join(30)
    assert outcomes.count("done") == 1
    assert content(tmp_path / "out") == NEW and names(tmp_path) == ["out"]


def test_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(descriptor: int) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(locks_module, "_lock", none)
    with StagedFolder(tmp_path / "out") as first:
        with pytest.raises(CheckpointError, match="or one was killed") as error, StagedFolder(tmp_path / "out"):
            pass
        assert ".out.lock.held" in str(error.value)
        fill(first.path, NEW)
        first.commit()
    assert content(tmp_path / "out") == NEW and names(tmp_path) == ["out"]


def test_a_lock_file_deleted_while_it_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The holder deletes its file between another's opening and locking it: that lock would guard nothing."""
    first, second, third = (locks_module.FileLock(tmp_path / "lock", "out") for _ in range(3))
    first.acquire()
    real = locks_module._lock

    def late(descriptor: int) -> None:
        first.release()
        real(descriptor)

    monkeypatch.setattr(locks_module, "_lock", late)
    second.acquire()
    with pytest.raises(CheckpointError, match="another run"):
        third.acquire()
    second.release()
    assert names(tmp_path) == []


def test_a_lock_file_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / ".out.lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match="nothing can be written"), StagedFolder(tmp_path / "out"):
        pass
    assert not (tmp_path / "elsewhere").exists()
