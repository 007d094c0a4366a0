"""An output appears whole or not at all, whatever happens on the way, including a real kill at every step."""

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from surgery.checkpoint import StagedFolder, check_output, open_checkpoint, repair_output
from surgery.errors import CheckpointError, UsageError

from .builders import hub_snapshot, listing, single

STEPS = ["locked", "repaired", "created", "synced", "moved", "renamed", "discarded"]
OLD, NEW, NONE = "old", "new", None


def content(out: Path) -> str | None:
    """The version of a whole output, or None where there is no output."""
    if not out.exists():
        return None
    version = (out / "version").read_text()
    assert (out / "sub" / "version").read_text() == version, "half an output"
    assert len(list(out.iterdir())) == 3, "two outputs mixed"
    return version


def fill(folder: Path, version: str) -> None:
    (folder / "sub").mkdir(parents=True)
    (folder / "version").write_text(version)
    (folder / "sub" / "version").write_text(version)
    (folder / "surgery").mkdir(exist_ok=True)
    (folder / "surgery" / "plan.json").write_text("{}")


def stage(out: Path, version: str, *, force: bool = False) -> None:
    with StagedFolder(out, force=force) as staged:
        fill(staged.path, version)
        staged.commit()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_commit(tmp_path: Path) -> None:
    steps: list[str] = []
    with StagedFolder(tmp_path / "out", on_step=steps.append) as staged:
        assert staged.path.parent == tmp_path and staged.path.name.startswith("out.partial-")
        fill(staged.path, NEW)
        assert not (tmp_path / "out").exists()
        assert staged.commit() == staged.out == tmp_path / "out"
        assert staged.commit() == staged.out
    assert content(tmp_path / "out") == NEW and names(tmp_path) == ["out"]
    assert steps == ["locked", "repaired", "created", "synced", "renamed"]


@pytest.mark.skipif(sys.platform == "win32", reason="folders cannot be synced there")
def test_everything_is_on_the_disk_before_it_is_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    real = os.fsync
    monkeypatch.setattr(
        os, "fsync", lambda descriptor: (synced.append(os.fstat(descriptor).st_ino), real(descriptor))[1]
    )
    before: list[int] = []
    with StagedFolder(
        tmp_path / "out", on_step=lambda step: before.extend(synced if step == "synced" else ())
    ) as staged:
        fill(staged.path, NEW)
        staged.commit()
    out = tmp_path / "out"
    written = {out.stat().st_ino, *(path.stat().st_ino for path in out.rglob("*"))}
    assert set(before) == written and len(written) == 6
    assert synced[-1] == tmp_path.stat().st_ino, "the rename itself"


def test_without_commit_nothing_stays(tmp_path: Path) -> None:
    with StagedFolder(tmp_path / "deep" / "er" / "out") as staged:
        fill(staged.path, NEW)
    assert names(tmp_path) == []


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_exception_leaves_nothing(error: type[BaseException], tmp_path: Path) -> None:
    with pytest.raises(error), StagedFolder(tmp_path / "out") as staged:
        fill(staged.path, NEW)
        raise error
    assert names(tmp_path) == []


@pytest.mark.parametrize("step", STEPS)
def test_interrupt_at_each_step(step: str, tmp_path: Path) -> None:
    """Ctrl-C: the old output until the new one has its name; the leftovers are gone at once or by the next run."""
    out = tmp_path / "out"
    fill(out, OLD)

    def interrupt(now: str) -> None:
        if now == step:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), StagedFolder(out, force=True, on_step=interrupt) as staged:
        fill(staged.path, NEW)
        staged.commit()
    committed = step in ("renamed", "discarded")
    assert content(out) == (NEW if committed else OLD)
    if step != "renamed":
        assert names(tmp_path) == ["out"]
    stage(out, "third", force=True)
    assert content(out) == "third" and names(tmp_path) == ["out"]


def test_empty_output_is_taken(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    stage(tmp_path / "out", NEW)
    assert content(tmp_path / "out") == NEW


def test_occupied_output_is_refused_before_any_work(tmp_path: Path) -> None:
    out = tmp_path / "out"
    fill(out, OLD)
    before = listing(tmp_path)
    with pytest.raises(UsageError, match="is not empty") as error:
        StagedFolder(out)
    assert "--force" in str(error.value) and error.value.exit_code == 2
    assert listing(tmp_path) == before
    stage(out, NEW, force=True)
    assert content(out) == NEW and names(tmp_path) == ["out"]


@pytest.mark.parametrize("record", ["plan.json", "history.json"])
def test_force_replaces_an_earlier_output_and_nothing_else(record: str, tmp_path: Path) -> None:
    out = tmp_path / "precious"
    (out / "deep").mkdir(parents=True)
    for name in ("thesis.txt", "a", "b", "c", "deep/er"):
        (out / name).write_text("keep")
    before = listing(tmp_path)
    with pytest.raises(UsageError, match=r"was not written by surgery.*'?a'?, '?b'?, '?c'? and 2 more") as error:
        StagedFolder(out, force=True)
    assert error.value.exit_code == 2 and listing(tmp_path) == before
    (out / "surgery").mkdir()
    (out / "surgery" / record).write_text("{}")
    stage(out, NEW, force=True)
    assert content(out) == NEW


def test_an_output_without_a_record_is_replaced_if_it_holds_nothing_else(tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / "sub").mkdir(parents=True)
    (out / "sub" / "version").write_text(OLD)
    check_output(out, force=True, known_files=["version", "sub/version"])
    (out / "sub" / "link").symlink_to(tmp_path)
    with pytest.raises(UsageError, match=r"holds '?sub/link"):
        check_output(out, force=True, known_files=["version", "sub/version"])


def test_what_is_put_there_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(UsageError, match="was not written by surgery"), StagedFolder(out, force=True) as staged:
        fill(staged.path, NEW)
        out.mkdir()
        (out / "thesis.txt").write_text("keep")
        staged.commit()
    assert names(tmp_path) == ["out"] and names(out) == ["thesis.txt"]


def test_an_output_filled_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(CheckpointError, match="cannot be completed"), StagedFolder(out) as staged:
        fill(staged.path, NEW)
        fill(out, "somebody else")
        staged.commit()
    assert content(out) == "somebody else" and names(tmp_path) == ["out"]


def test_outputs_that_are_never_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = single(tmp_path / "a" / "source")
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to(source)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    fill(tmp_path / "home", OLD)
    before = listing(tmp_path)
    for out, message in [
        (source, "is the source itself"),
        (source / "x", "inside the source"),
        (tmp_path / "link", "is the source itself"),
        (tmp_path / "link" / "x" / "y", "inside the source"),
        (source / ".." / "source", "is the source itself"),
        (tmp_path / "a", "the source lies inside"),
        (tmp_path, "the source lies inside"),
        (tmp_path / "file", "not a folder"),
        (tmp_path / "home", "contains your home folder"),
        (tmp_path / "out.partial-0123456789ab", "cannot be the name"),
        (Path("/"), "cannot be the name"),
    ]:
        for force in (True, False):
            if out.name == "home" and not force:
                continue
            with pytest.raises(UsageError, match=message):
                StagedFolder(out, force=force, source=source)
    monkeypatch.chdir(source)
    with pytest.raises(UsageError, match="current folder"):
        check_output(source.parent, force=True)
    with pytest.raises(CheckpointError, match="cannot be used"):
        check_output(tmp_path / "a\0b")
    assert listing(tmp_path) == before
    assert check_output(tmp_path / "sourced", source=source) == tmp_path / "sourced"


def test_a_cached_repository_is_all_source(tmp_path: Path) -> None:
    snapshot = hub_snapshot(tmp_path)
    with pytest.raises(UsageError, match="inside the source"):
        StagedFolder(snapshot.parents[1] / "blobs", force=True, source=snapshot)


def test_linked_output_is_written_where_it_points(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    fill(tmp_path / "disk" / "real", OLD)
    (tmp_path / "out").symlink_to("disk/real")
    stage(tmp_path / "out", NEW, force=True)
    assert (tmp_path / "out").is_symlink() and content(tmp_path / "out") == NEW
    assert names(tmp_path / "disk") == ["real"]


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write anywhere")
def test_no_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    try:
        with pytest.raises(CheckpointError, match="nothing can be written"), StagedFolder(tmp_path / "out"):
            pass
    finally:
        tmp_path.chmod(0o755)


def test_parent_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UsageError, match="'file', which is a file"), StagedFolder(tmp_path / "file" / "out"):
        pass


# Kills


CHILD = textwrap.dedent("""
    import os, signal, sys
    from pathlib import Path
    from surgery.checkpoint import StagedFolder, output

    out, deadly, force = Path(sys.argv[1]), sys.argv[2], sys.argv[3] == "force"

    def die(step):
        if step == deadly:
            os.kill(os.getpid(), signal.SIGKILL)

    removed = output.shutil.rmtree
    if deadly == "half removed":
        def half(path):
            (path / "version").unlink()
            die("half removed")
        output.shutil.rmtree = half
    with StagedFolder(out, force=force, on_step=die) as staged:
        (staged.path / "version").write_text("new")
        die("writing")
        (staged.path / "sub").mkdir()
        (staged.path / "sub" / "version").write_text("new")
        (staged.path / "surgery").mkdir()
        (staged.path / "surgery" / "plan.json").write_text("{}")
        staged.commit()
    die("left")
""")


def killed(out: Path, step: str, *, force: bool) -> None:
    child = subprocess.run(
        [sys.executable, "-c", CHILD, str(out), step, "force" if force else ""],
        check=False,
        capture_output=True,
        timeout=60,
    )
    assert child.returncode == -signal.SIGKILL, child.stderr.decode()


KILLS = [
    # step, output after the kill, output once repaired
    ("locked", OLD, OLD),
    ("created", OLD, OLD),
    ("writing", OLD, OLD),
    ("synced", OLD, OLD),
    ("moved", NONE, OLD),
    ("renamed", NEW, NEW),
    ("half removed", NEW, NEW),
    ("discarded", NEW, NEW),
    ("left", NEW, NEW),
]


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no kill -9 here")
@pytest.mark.parametrize(("step", "after", "repaired"), KILLS)
def test_killed_while_replacing(step: str, after: str | None, repaired: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    fill(out, OLD)
    killed(out, step, force=True)
    assert content(out) == after
    if after is None:
        with pytest.raises(CheckpointError, match="replacement of this folder was interrupted"):
            open_checkpoint(out)
    # The next run that does not insist gives back a whole output, refuses to touch it, and clears the leftovers.
    with pytest.raises(UsageError, match="not empty"):
        stage(out, "third")
    if after is not None:  # refused before any work, so with the leftovers still there: insist, but give up
        with StagedFolder(out, force=True):
            pass
    assert content(out) == repaired and names(tmp_path) == ["out"]
    stage(out, "third", force=True)
    assert content(out) == "third" and names(tmp_path) == ["out"]


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no kill -9 here")
def test_half_a_deleted_folder_is_never_given_back(tmp_path: Path) -> None:
    """The old folder is moved aside whole, so a half-deleted one must not carry that name."""
    out = tmp_path / "out"
    fill(out, OLD)
    killed(out, "half removed", force=True)
    out.rename(tmp_path / "elsewhere")
    stage(out, "third")
    assert content(out) == "third" and names(tmp_path) == ["elsewhere", "out"]


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no kill -9 here")
@pytest.mark.parametrize("step", ["locked", "writing", "synced", "renamed"])
def test_killed_while_writing_a_new_output(step: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    killed(out, step, force=False)
    assert content(out) == (NEW if step == "renamed" else NONE)
    stage(out, "third", force=step == "renamed")
    assert content(out) == "third" and names(tmp_path) == ["out"]


def test_a_folder_made_since_an_interrupted_replacement_is_kept(tmp_path: Path) -> None:
    out = tmp_path / "out"
    fill(tmp_path / "out.replaced-0123456789ab", OLD)
    fill(tmp_path / "out.partial-0123456789ab", NEW)
    fill(out, "made since")
    with pytest.raises(CheckpointError, match="Keep one"), StagedFolder(out, force=True):
        pass
    assert content(out) == "made since" and content(tmp_path / "out.replaced-0123456789ab") == OLD


def test_only_own_leftovers_are_removed(tmp_path: Path) -> None:
    kept = [
        "out.partial",
        "out.partial-mine",
        "out2.partial-0123456789ab",
        "out.partial-0123456789ab.txt",
        "out.backup",
    ]
    for name in kept:
        fill(tmp_path / name, OLD)
    (tmp_path / "out.partial-aaaaaaaaaaaa").write_text("a file, not ours")
    (tmp_path / "out.partial-bbbbbbbbbbbb").symlink_to("out.backup")
    fill(tmp_path / "out.partial-cccccccccccc", NEW)
    stage(tmp_path / "out", NEW)
    assert names(tmp_path) == sorted([*kept, "out", "out.partial-aaaaaaaaaaaa", "out.partial-bbbbbbbbbbbb"])


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no kill -9 here")
@pytest.mark.parametrize("step", ["writing", "moved", "renamed"])
def test_tidying_repairs_and_writes_nothing_else(step: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    fill(out, OLD)
    killed(out, step, force=True)
    repair_output(out)
    assert content(out) == (NEW if step == "renamed" else OLD) and names(tmp_path) == ["out"]
    before = listing(tmp_path)
    repair_output(out)
    assert listing(tmp_path) == before
