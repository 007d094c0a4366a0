"""Actions that several processes of one run share: the first process acts, and all of them get the result."""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable
from typing import Any, TypeVar

from surgery.errors import SurgeryError

T = TypeVar("T")


def on_first(action: Callable[[], T]) -> T:
    """Do something in the first process and give its result to all.

    Raises:
        SurgeryError: as the action, in every process.
    """
    from torch import distributed

    if not (distributed.is_available() and distributed.is_initialized()) or distributed.get_world_size() == 1:
        return action()
    box: list[Any] = [None, None]
    if distributed.get_rank() == 0:
        try:
            box[0] = action()
        except SurgeryError as error:
            box[1] = (error.message, error.hint)
            distributed.broadcast_object_list(box, src=0)
            raise
    distributed.broadcast_object_list(box, src=0)
    if box[1] is not None:
        message, hint = box[1]
        raise SurgeryError(f"the first process stopped: {message}", hint=hint)
    result: T = box[0]
    return result


def is_first() -> bool:
    """Whether this is the process that writes files and gives events."""
    return os.environ.get("RANK", "0") == "0"


def process_count() -> int:
    """The number of processes of this run."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def any_process(flag: bool) -> bool:
    """Whether the flag is set in any process."""
    import torch
    from torch import distributed

    if not (distributed.is_available() and distributed.is_initialized()) or distributed.get_world_size() == 1:
        return flag
    backend = distributed.get_backend()
    total = torch.tensor([int(flag)], device="cuda" if backend == "nccl" else "cpu")
    distributed.all_reduce(total, op=distributed.ReduceOp.MAX)
    return bool(total.item())


def leave_at_exit() -> None:
    """Leave the group of processes before the interpreter shuts down.

    Otherwise Gloo's remaining threads end the process with SIGABRT, and a finished run counts as failed. Not for a
    run that stopped with an error: others may wait in a collective, and leaving can wait for them.
    """
    atexit.unregister(_leave)  # as often as there are runs in this process, once
    atexit.register(_leave)


def _leave() -> None:
    from torch import distributed

    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()
