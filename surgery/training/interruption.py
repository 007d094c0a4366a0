"""Ctrl-C and SIGTERM while a model trains."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from surgery.training.callbacks import StopCallback


@contextmanager
def stop_on_signals(stop: StopCallback) -> Iterator[None]:
    """The first Ctrl-C or SIGTERM asks to stop after the step; a second one stops at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    kinds = (signal.SIGINT, signal.SIGTERM)
    before = {kind: signal.getsignal(kind) for kind in kinds}

    def ask(number: int, frame: Any) -> None:
        if stop.requested or not stop.active:  # outside the steps there is nothing to finish
            raise KeyboardInterrupt
        stop.request()

    for kind in kinds:
        signal.signal(kind, ask)
    try:
        yield
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)
