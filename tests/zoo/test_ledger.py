"""The ledger survives kills, torn lines, a full disk and a clock that jumps; a broken one says on which line."""

from __future__ import annotations

import errno
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from surgery.errors import CheckpointError
from surgery.zoo.ledger import Ledger, read_ledger


def write_some(path: Path) -> None:
    with Ledger(path) as ledger:
        ledger.write("run", run="r1", engine="local")
        ledger.write("started", run="r1", item="a", fingerprint="f", work="w", replaces=None)
        ledger.write("done", run="r1", item="a", fingerprint="f", work="w", seconds=1.5)
        ledger.write("started", run="r1", item="b", fingerprint="g", work="w")


def statuses(path: Path) -> dict[str, str]:
    return {name: entry.status for name, entry in read_ledger(path).entries.items()}


def test_what_was_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    assert read_ledger(path).entries == {} and read_ledger(path).run_ended
    write_some(path)
    state = read_ledger(path)
    assert statuses(path) == {"a": "done", "b": "started"}
    assert (state.run, state.run_ended) == ("r1", False)
    assert state.successes["a"].event["seconds"] == 1.5
    with Ledger(path) as ledger:
        ledger.write("failed", run="r1", item="a", fingerprint="f2", work="w", why="error", message="m")
        ledger.write("ended", run="r1")
    state = read_ledger(path)
    assert state.entries["a"].status == "failed" and state.run_ended
    assert state.successes["a"].fingerprint == "f"  # what was done stays done


def test_every_torn_last_line_is_left_out_and_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    write_some(path)
    whole = path.read_bytes()
    last = whole[:-1].rfind(b"\n") + 1
    for length in range(last, len(whole)):
        path.write_bytes(whole[:length])
        assert statuses(path) == {"a": "done"}, length
        with Ledger(path) as ledger:
            assert path.read_bytes() == whole[:last]
            ledger.write("started", run="r1", item="c", fingerprint=None, work="w")
        assert statuses(path) == {"a": "done", "c": "started"}


def test_a_ledger_of_nothing_but_a_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    path.write_bytes(b'{"event": "led')
    assert statuses(path) == {}
    write_some(path)
    assert statuses(path) == {"a": "done", "b": "started"}


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ("{", "line 3, is broken"),
        ('{"event": "done"}', "line 3, is not an event"),
        ('{"event": "done", "item": 3, "run": "r"}', "must be text"),
        (
            '{"event": "ledger", "format": 99}',
            r"newer version of surgery: it has format 99, this version reads formats up to 1\n",
        ),
        ('{"event": "ledger", "format": "x"}', "format 'x'"),
        ('{"event": "strange"}', "strange"),
        ('{"event": "done", "event": "done"}', "twice"),
        ('{"event": "done", "item": "a", "run": "r", "fingerprint": [1]}', "must be text"),
        ('{"event": "done", "item": "a", "run": "r", "seconds": "long"}', "seconds must be a number"),
        ('{"event": "done", "item": "a", "run": "r", "bytes": true}', "bytes must be a number"),
        ("[]", "object"),
    ],
)
def test_a_broken_line_in_the_middle_is_an_error(line: str, part: str, tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    write_some(path)
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:2], line, *lines[2:]]) + "\n")
    with pytest.raises(CheckpointError, match=part) as caught:
        read_ledger(path)
    assert not caught.value.message.endswith("..")


def test_every_event_is_on_the_disk_before_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "ledger.jsonl"
    synced: list[int] = []
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda descriptor: (real(descriptor), synced.append(path.stat().st_size))[0])
    sizes = []
    with Ledger(path) as ledger:
        for number in range(3):
            ledger.write("run", run=f"r{number}")
            sizes.append(path.stat().st_size)
    assert sizes == synced[-3:]


def test_a_full_disk_is_an_error_and_the_ledger_stays_readable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "ledger.jsonl"
    write_some(path)
    real = os.write

    def half(descriptor: int, data: Any) -> int:
        if len(data) > 20:
            return real(descriptor, data[:20])
        raise OSError(errno.ENOSPC, "No space left on device")

    with Ledger(path) as ledger:
        monkeypatch.setattr(os, "write", lambda descriptor, data: half(descriptor, memoryview(data)[:30]))
        with pytest.raises(CheckpointError, match="No space left"):
            ledger.write("ended", run="r1")
        monkeypatch.undo()
    assert statuses(path) == {"a": "done", "b": "started"}
    with Ledger(path) as ledger:
        ledger.write("ended", run="r1")
    assert read_ledger(path).run_ended


def test_order_is_that_of_the_lines_not_of_the_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "ledger.jsonl"
    clock = iter([4e9, 0, 2e9, 1, 5e9, 0.5, 3e9])
    monkeypatch.setattr(
        time, "gmtime", lambda: time.struct_time((1970 + int(next(clock) / 3e7), 1, 1, 0, 0, 0, 0, 1, 0))
    )
    write_some(path)
    assert statuses(path) == {"a": "done", "b": "started"}
    years = [json.loads(line)["at"][:4] for line in path.read_text().splitlines()]
    assert years != sorted(years)


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "other").write_text("precious\n")
    (tmp_path / "ledger.jsonl").symlink_to("other")
    with pytest.raises(CheckpointError), Ledger(tmp_path / "ledger.jsonl"):
        pass
    assert (tmp_path / "other").read_text() == "precious\n"
