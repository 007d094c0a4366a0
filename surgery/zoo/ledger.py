"""The ledger: one JSON line for each event of an item, on the disk before the run continues.

Lines are only appended. A kill or a power cut can leave an incomplete last line: readers ignore it, and the next writer
removes it. Times are for people; the state follows from the order of the lines alone, so a clock that jumps changes
nothing.
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
# The types of the keys that summaries add up, compare or print.
_NUMBERS = ("seconds", "peak", "bytes", "checks", "attempt")
_TEXTS = (
    *("fingerprint", "work", "why", "message", "hint", "family", "placed", "verdict", "plan", "commit"),
    *("repository", "url"),
)


@dataclass(frozen=True)
class LedgerEntry:
    """The last event of one item in the ledger.

    Attributes:
        status: of the item; ``started`` without a later event means that it is running or was killed.
        run: id of the run that wrote the event.
        fingerprint: of source and work together; None if the source could not be read or is not on this machine.
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
    """The state that a ledger describes: the last events of every item, by name, and of the last run."""

    entries: dict[str, LedgerEntry] = field(default_factory=dict)
    run: str | None = None
    run_ended: bool = True
    run_event: Mapping[str, Any] = field(default_factory=dict)
    # The last success of each item; a later failure does not remove it.
    successes: dict[str, LedgerEntry] = field(default_factory=dict)
    # The last event of the upload of each item.
    pushes: dict[str, Mapping[str, Any]] = field(default_factory=dict)


def read_ledger(path: Path) -> LedgerState:
    """The state that a ledger describes; an empty state if there is no ledger.

    Raises:
        CheckpointError: the ledger cannot be read, a line other than the last is broken, or a newer version wrote it.
    """
    state = LedgerState()
    for number, event in _events(path):
        try:
            _apply(state, event)
        except _NewerError as error:
            raise CheckpointError(
                f"the ledger {path.name} was written by a newer version of surgery: {error}",
                hint="Install a newer model-surgery, or choose another output.",
            ) from error
        except (KeyError, TypeError, ValueError) as error:
            raise _broken(path, number, f"is not an event of a zoo ({error})") from error
    return state


class _NewerError(Exception):
    """The ledger has a newer format than this version reads."""


class Ledger:
    """The only writer of a ledger. The caller holds the lock of the zoo."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = None

    def __enter__(self) -> Self:
        """Open the ledger for appending, and remove an incomplete last line.

        Raises:
            CheckpointError: the ledger cannot be written.
        """
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOFOLLOW", 0)
        try:
            is_new = not self.path.exists()
            self._descriptor = os.open(self.path, flags, 0o644)
            _remove_incomplete_line(self._descriptor)
            if is_new:
                fsync_folder(self.path.parent)
        except OSError as error:
            self.__exit__()
            raise CheckpointError(f"the ledger {self.path.name} cannot be written: {error.strerror}") from error
        if os.fstat(self._descriptor).st_size == 0:
            self.write("ledger", format=FORMAT)
        return self

    def __exit__(self, *_: object) -> None:
        """Close the ledger."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def write(self, event: str, **content: Any) -> dict[str, Any]:
        """Append one event and wait until it is on the disk.

        Raises:
            CheckpointError: the disk is full or fails. The next writer removes the incomplete line.
        """
        assert self._descriptor is not None, "the ledger is not open"
        document = {"event": event, "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), **content}
        line = (json.dumps(document, allow_nan=False) + "\n").encode()
        if len(line) > _LONGEST_LINE:
            raise CheckpointError(f"an event of {len(line):,} bytes is too long for the ledger")
        try:
            left = memoryview(line)
            while left:
                left = left[os.write(self._descriptor, left) :]
            os.fsync(self._descriptor)
        except OSError as error:
            raise CheckpointError(
                f"the ledger {self.path.name} cannot be written: {error.strerror}",
                hint="Free some disk space, then run the same command again to resume.",
            ) from error
        return document


def new_run_id() -> str:
    """A new id for a run."""
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
                    return  # incomplete after a kill
                try:
                    yield number, parse_json(line, f"line {number}")
                except CheckpointError as error:
                    raise _broken(path, number, f"is broken: {error.message}") from error
    except FileNotFoundError:
        return
    except OSError as error:
        raise CheckpointError(f"the ledger {path.name} cannot be read: {error.strerror}") from error


def _apply(state: LedgerState, event: Mapping[str, Any]) -> None:
    kind = event["event"]
    if kind == "ledger":
        if type(event["format"]) is not int:
            raise ValueError(f"format {event['format']!r}")
        if event["format"] > FORMAT:
            raise _NewerError(f"it has format {event['format']}, this version reads formats up to {FORMAT}")
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
        entry = LedgerEntry(status, _text(event, "run"), event.get("fingerprint"), event.get("work"), event)
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


def _remove_incomplete_line(descriptor: int) -> None:
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
        f"the ledger {path.name}, line {number}, {why.rstrip('.')}",
        hint=f"surgery does not write such a line. Repair it, or move {path} away: existing outputs are then refused "
        "without --force.",
    )
