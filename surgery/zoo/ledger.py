"""The ledger: what happened to every item, one JSON line each, on the disk before anything else goes on.

It is only ever appended to. A kill or a power cut can tear the last line, which then says nothing: readers leave it
out, and the next writer cuts it off. Times are for people; what is true follows from the order of the lines alone, so
a clock that jumps changes nothing.
"""

from __future__ import annotations

import json
import os
import secrets
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

from surgery.checkpoint import fsync_folder
from surgery.checkpoint.strict_json import parse_json
from surgery.errors import CheckpointError

FORMAT = 1
Status = Literal["waiting", "started", "done", "failed"]
PUSH_EVENTS = ("pushing", "pushed", "not pushed")
_LONGEST_LINE = 1_000_000
# What summaries add up, compare or print.
_NUMBERS = ("seconds", "peak", "bytes", "checks", "attempt")
_TEXTS = (
    *("fingerprint", "work", "why", "message", "hint", "family", "placed", "verdict", "plan", "commit"),
    *("repository", "url"),
)


@dataclass(frozen=True)
class Entry:
    """What the ledger last says of one item.

    Attributes:
        status: ``started`` means that no end was written: it is running, or was killed.
        run: the run that wrote it.
        fingerprint: of source and work together; None where the source could not be read or is not at hand.
        work: fingerprint of the work alone.
        event: the whole event.
    """

    status: Status
    run: str
    fingerprint: str | None
    work: str | None
    event: Mapping[str, Any]


@dataclass
class LedgerState:
    """All items by name, and the last run."""

    entries: dict[str, Entry] = field(default_factory=dict)
    run: str | None = None
    run_ended: bool = True
    run_event: Mapping[str, Any] = field(default_factory=dict)
    # The last success of each item, which a later failure to do it again does not undo.
    successes: dict[str, Entry] = field(default_factory=dict)
    # The last event of each item's upload.
    pushes: dict[str, Mapping[str, Any]] = field(default_factory=dict)


def read_ledger(path: Path) -> LedgerState:
    """What a ledger says; nothing where there is none.

    Raises:
        CheckpointError: it cannot be read, a line other than the last is broken, or a newer version wrote it.
    """
    state = LedgerState()
    for number, event in _events(path):
        try:
            _apply(state, event)
        except _NewerError as error:
            raise CheckpointError(
                f"The ledger {path.name} was written by a newer version of this tool: {error}.",
                hint="Install a newer model-surgery, or choose another output.",
            ) from error
        except (KeyError, TypeError, ValueError) as error:
            raise _broken(path, number, f"is no event of a zoo ({error})") from error
    return state


class _NewerError(Exception):
    """A ledger of a format that this version does not know."""


class Ledger:
    """The one writer of a ledger; the caller holds the zoo's lock."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = None

    def __enter__(self) -> Self:
        """Open it to append, and cut off a torn last line.

        Raises:
            CheckpointError: it cannot be written.
        """
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOFOLLOW", 0)
        try:
            is_new = not self.path.exists()
            self._descriptor = os.open(self.path, flags, 0o644)
            _cut_torn_line(self._descriptor)
            if is_new:
                fsync_folder(self.path.parent)
        except OSError as error:
            self.__exit__()
            raise CheckpointError(f"The ledger {self.path.name} cannot be written: {error.strerror}.") from error
        if os.fstat(self._descriptor).st_size == 0:
            self.write("ledger", format=FORMAT)
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def write(self, event: str, **content: Any) -> dict[str, Any]:
        """Append one event and wait until it is on the disk.

        Raises:
            CheckpointError: the disk does not take it; the torn line is cut off again.
        """
        assert self._descriptor is not None, "the ledger is not open"
        document = {"event": event, "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), **content}
        line = (json.dumps(document, allow_nan=False) + "\n").encode()
        if len(line) > _LONGEST_LINE:
            raise CheckpointError(f"An event of {len(line):,} bytes does not go into the ledger.")
        try:
            left = memoryview(line)
            while left:
                left = left[os.write(self._descriptor, left) :]
            os.fsync(self._descriptor)
        except OSError as error:
            raise CheckpointError(
                f"The ledger {self.path.name} cannot be written: {error.strerror}.",
                hint="Free some space, then run the same command again: it goes on where this one stopped.",
            ) from error
        return document


def new_run_id() -> str:
    """A fresh id for a run."""
    return secrets.token_hex(6)


def _events(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        with path.open("rb") as file:
            number = 0
            while line := file.readline(_LONGEST_LINE + 1):
                number += 1
                if not line.endswith(b"\n"):
                    if len(line) > _LONGEST_LINE:
                        raise _broken(path, number, "is too long")
                    return  # torn by a kill
                try:
                    yield number, parse_json(line, f"line {number}")
                except CheckpointError as error:
                    raise _broken(path, number, f"is broken: {error.message}") from error
    except FileNotFoundError:
        return
    except OSError as error:
        raise CheckpointError(f"The ledger {path.name} cannot be read: {error.strerror}.") from error


def _apply(state: LedgerState, event: Mapping[str, Any]) -> None:
    kind = event["event"]
    if kind == "ledger":
        if type(event["format"]) is not int:
            raise ValueError(f"format {event['format']!r}")
        if event["format"] > FORMAT:
            raise _NewerError(f"it has format {event['format']}, this one reads up to {FORMAT}")
    elif kind == "run":
        state.run, state.run_ended, state.run_event = _text(event, "run"), False, event
    elif kind == "ended":
        state.run_ended = True
    elif kind in PUSH_EVENTS:
        _check_types(event)
        state.pushes[_text(event, "item")] = event
    elif kind in ("started", "done", "failed", "interrupted"):
        name = _text(event, "item")
        status: Any = "waiting" if kind == "interrupted" else kind
        _check_types(event)
        entry = Entry(status, _text(event, "run"), event.get("fingerprint"), event.get("work"), event)
        state.entries[name] = entry
        if status == "done":
            state.successes[name] = entry
    else:
        raise ValueError(f"event {kind!r}")


def _check_types(event: Mapping[str, Any]) -> None:
    for keys, kinds in ((_NUMBERS, (int, float)), (_TEXTS, (str,))):
        for key in keys:
            if not (event.get(key) is None or type(event[key]) in kinds):
                raise ValueError(f"{key} must be {'text' if kinds == (str,) else 'a number'}")


def _text(event: Mapping[str, Any], key: str) -> str:
    if not isinstance(event[key], str):
        raise ValueError(f"{key} must be text")
    return str(event[key])


def _cut_torn_line(descriptor: int) -> None:
    size = os.fstat(descriptor).st_size
    end = size
    while end > 0:
        begin = max(0, end - 65536)
        os.lseek(descriptor, begin, os.SEEK_SET)
        block = os.read(descriptor, end - begin)
        found = block.rfind(b"\n")
        if found >= 0:
            end = begin + found + 1
            break
        end = begin
    if end < size:
        os.ftruncate(descriptor, end)
        os.fsync(descriptor)


def _broken(path: Path, number: int, why: str) -> CheckpointError:
    return CheckpointError(
        f"The ledger {path.name}, line {number}, {why.rstrip('.')}.",
        hint=f"Nothing writes such a line here. Mend it, or move {path} away: outputs that are there are then refused "
        "unless --force is given.",
    )
