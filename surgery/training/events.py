"""Events that are given one after another, also where a signal brings one in the middle of another."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

Event = dict[str, Any]


class InTurn:
    """Gives events to a handler that is never called while it runs.

    A signal handler runs between any two instructions of the main thread. Its event may come while the handler writes
    a line of another event; it then waits for the end of that call, a moment later.
    """

    def __init__(self, give: Callable[[Event], None]) -> None:
        self._give = give
        self._waiting: deque[Event] = deque()
        self._giving = False

    def __call__(self, event: Event) -> None:
        """Give an event: now, or by the call that gives another one now."""
        self._waiting.append(event)
        # An event that a signal brings after the inner loop, while the flag is still set, is found by the outer one.
        while self._waiting and not self._giving:
            self._giving = True
            try:
                while self._waiting:
                    self._give(self._waiting.popleft())
            finally:
                self._giving = False
