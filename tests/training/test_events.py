"""Events that a signal brings in the middle of another wait for its end."""

from __future__ import annotations

import pytest

from surgery.training.events import Event, InTurn


def test_an_event_within_another_comes_after_it() -> None:
    said: list[str] = []

    def give(event: Event) -> None:
        said.append(f"begin {event['event']}")
        if event["event"] == "step":
            tell({"event": "stopping"})
        said.append(f"end {event['event']}")

    tell = InTurn(give)
    tell({"event": "step"})
    tell({"event": "done"})
    assert said == ["begin step", "end step", "begin stopping", "end stopping", "begin done", "end done"]


def test_an_error_of_the_handler_does_not_silence_what_follows() -> None:
    said: list[str] = []

    def give(event: Event) -> None:
        if event["event"] == "step":
            raise OSError("no space")
        said.append(event["event"])

    tell = InTurn(give)
    with pytest.raises(OSError, match="no space"):
        tell({"event": "step"})
    tell({"event": "done"})
    assert said == ["done"]
