"""The travelling code brought to this version: in one step, recorded, and nothing else touched."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from surgery.checkpoint.record import HISTORY_NAME
from surgery.commands import main
from surgery.conversion import code_refresh, convert, refresh, revert
from surgery.errors import CheckpointError, PlanRefusedError
from surgery.operations.code import ENTRY_NAME, travelling_code
from surgery.verification import verify
from tests.conversion.conftest import MakeKind, tree
from tests.single_file import with_single_file

OLD = b'"""An older version of the code."""\n'
CODE = travelling_code(["ssmax"])


@pytest.fixture
def outdated(source: Path, tmp_path: Path) -> Path:
    out = convert(source, output=tmp_path / "out").output
    (out / ENTRY_NAME).write_bytes(OLD)
    return out


def change_config(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


def test_the_code_is_rewritten_and_the_history_says_so(outdated: Path) -> None:
    before = tree(outdated)
    result = refresh(outdated)
    assert result.changed and result.before is not None
    after = tree(outdated)
    assert (outdated / ENTRY_NAME).read_bytes() == CODE[ENTRY_NAME]
    assert {name for name in before | after if before.get(name) != after.get(name)} == {ENTRY_NAME, HISTORY_NAME}
    (entry,) = json.loads((outdated / HISTORY_NAME).read_text())["entries"]
    assert entry["step"] == "refresh" and (entry["before"], entry["after"]) == (result.before, result.after)


def test_a_second_time_nothing_is_to_do(outdated: Path) -> None:
    refresh(outdated)
    before = tree(outdated)
    assert not refresh(outdated).changed
    assert tree(outdated) == before


def test_the_history_keeps_what_was_there_and_the_source_still_comes_back(
    outdated: Path, source: Path, tmp_path: Path
) -> None:
    (outdated / HISTORY_NAME).write_text(json.dumps({"schema": 1, "entries": [{"trained": "scale", "tokens": 5}]}))
    refresh(outdated)
    entries = json.loads((outdated / HISTORY_NAME).read_text())["entries"]
    assert [entry.get("trained", entry.get("step")) for entry in entries] == ["scale", "refresh"]
    revert(outdated, output=tmp_path / "back")
    assert tree(tmp_path / "back") == tree(source)


def test_a_kill_between_the_two_files_is_made_good(outdated: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = code_refresh._replace

    def killed(path: Path, content: bytes) -> None:
        if path.name == ENTRY_NAME:
            raise KeyboardInterrupt
        real(path, content)

    monkeypatch.setattr(code_refresh, "_replace", killed)
    with pytest.raises(KeyboardInterrupt):
        refresh(outdated)
    assert (outdated / ENTRY_NAME).read_bytes() == OLD
    monkeypatch.undo()
    refresh(outdated)
    assert (outdated / ENTRY_NAME).read_bytes() == CODE[ENTRY_NAME]
    assert len(json.loads((outdated / HISTORY_NAME).read_text())["entries"]) == 1
    assert not [path for path in outdated.iterdir() if path.name.endswith((".partial", ".lock"))]


def test_a_newer_format_is_refused_and_untouched(outdated: Path) -> None:
    config = json.loads((outdated / "config.json").read_text())
    change_config(outdated, surgery={**config["surgery"], "format_version": 99})
    before = tree(outdated)
    with pytest.raises(CheckpointError, match="99 is newer"):
        refresh(outdated)
    assert tree(outdated) == before


def test_not_converted_or_without_code_is_refused(source: Path, make_kind: MakeKind, tmp_path: Path) -> None:
    with pytest.raises(PlanRefusedError, match="not a converted checkpoint"):
        refresh(source)
    longer = convert(source, [{"name": "rope", "type": "yarn", "factor": 2}], output=tmp_path / "longer").output
    with pytest.raises(PlanRefusedError, match="no code travels"):
        refresh(longer)
    with pytest.raises(CheckpointError, match="there is no folder"):
        refresh(tmp_path / "nowhere")


def test_the_command_says_what_it_did(outdated: Path, source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, code, said in (
        ([str(outdated), "--json"], 0, '"changed": true'),
        ([str(outdated)], 0, "this version's already"),
        ([str(source)], 3, "not a converted checkpoint"),
    ):
        with pytest.raises(SystemExit) as left:
            main(["refresh", *arguments])
        assert left.value.code == code
        found = capsys.readouterr()
        assert said in " ".join((found.out + found.err).split())


def test_the_single_file_of_before_is_read_verified_reverted_and_refreshed(make_kind: MakeKind, tmp_path: Path) -> None:
    source = make_kind("adorned")
    old = with_single_file(convert(source, output=tmp_path / "old").output)
    assert not verify(old, against=source, files_only=True, record=False).failed
    revert(old, output=tmp_path / "back")
    assert tree(tmp_path / "back") == tree(source)

    (old / "notes.py").write_text("# a user's own file\n")
    before = tree(old)
    assert refresh(old).changed
    after = tree(old)
    assert {name: (old / name).read_bytes() for name in CODE} == CODE
    assert before.keys() - after.keys() == set() and after["notes.py"] == before["notes.py"]
    changed = {name for name in after if before.get(name) != after[name]}
    assert changed == {*CODE, HISTORY_NAME, "README.md"}
    assert all(name in (old / "README.md").read_text() for name in CODE)
    assert not verify(old, against=source, files_only=True).failed
    revert(old, output=tmp_path / "back-again")
    assert tree(tmp_path / "back-again") == tree(source)


def test_files_that_are_no_longer_needed_go_and_changed_ones_stay(outdated: Path) -> None:
    for name, content in (("surgery_gone.py", b"1\n"), ("surgery_changed.py", b"2\n"), ("surgery_own.py", b"3\n")):
        (outdated / name).write_bytes(content)
    written = {"surgery_gone.py": b"1\n", "surgery_changed.py": b"as surgery wrote it\n"}
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in written.items()}
    entry = {"step": "refresh", "files": hashes}
    (outdated / HISTORY_NAME).write_text(json.dumps({"schema": 1, "entries": [entry]}))
    assert list(refresh(outdated).removed) == ["surgery_gone.py"]
    assert not (outdated / "surgery_gone.py").exists()
    assert (outdated / "surgery_changed.py").exists() and (outdated / "surgery_own.py").exists()
