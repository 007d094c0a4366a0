"""Items on a Ray cluster: an existing one by its address, or one of several processes on this machine.

A task of Ray only starts the item's own process on its node and watches it there, so that limits, isolation and what
a kill leaves are the same as without Ray. The ledger has one writer, the program that was started. Sources and output
must be reachable under the same paths on every node.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from surgery.errors import UsageError
from surgery.zoo.engines import POLL_SECONDS, Said
from surgery.zoo.item_process import Outcome, request_for, run_isolated
from surgery.zoo.manifest import Parallel
from surgery.zoo.plan import Row


def _work(request: Mapping[str, Any], log: str) -> Outcome:
    """What a task does on its node."""
    return run_isolated(request, Path(log))


class RayEngine:
    """Tasks of a Ray cluster, one for each item, with its estimate of memory as the resource that it asks for."""

    name = "ray"

    def __init__(self, parallel: Parallel, *, address: str | None = None) -> None:
        """Join the cluster at ``address``, or begin one on this machine.

        Raises:
            UsageError: Ray is not installed, or does not answer.
        """
        try:
            import ray
        except ImportError as error:
            raise UsageError(
                "The engine ray needs Ray, which is not installed.",
                hint="pip install 'model-surgery[ray]', or leave --engine out.",
            ) from error
        self._ray = ray
        self._parallel = parallel
        self._tasks: dict[Any, Row] = {}
        self._began_it = not ray.is_initialized()
        own: dict[str, Any] = {"num_cpus": parallel.items, "include_dashboard": False} if address is None else {}
        try:
            if self._began_it:
                ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **own)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise UsageError(
                f"The Ray cluster {address or 'on this machine'} cannot be reached: {error}",
                hint="`ray status` tells whether it is there; without --ray-address one is begun here.",
            ) from error
        # Our own count of attempts goes into the ledger, so Ray begins nothing again by itself.
        self._task = ray.remote(max_retries=0)(_work)

    @property
    def running(self) -> int:
        """How many were handed to Ray and have not ended."""
        return len(self._tasks)

    def obstacle(self, row: Row) -> str | None:
        """The number of items; and that some node has as much memory as the item asks for, in all."""
        if self.running >= self._parallel.items:
            return f"{self.running} are running"
        most = max(
            (node["Resources"].get("memory", 0) for node in self._ray.nodes() if node["Alive"]),
            default=0,
        )
        if row.memory > most:
            return f"it needs about {row.memory:,} bytes of memory, no node of the cluster has more than {most:,.0f}"
        return None

    def start(self, row: Row, log: Path) -> None:
        """Hand it to Ray, which waits for a node that has the resources."""
        task = self._task.options(num_cpus=1, memory=row.memory, name=row.item.name)
        self._tasks[task.remote(request_for(row), str(log))] = row

    def poll(self) -> tuple[list[Said], list[tuple[Row, Outcome]]]:
        """What has ended. Tasks say nothing before."""
        if not self._tasks:
            return [], []
        ready, _ = self._ray.wait(list(self._tasks), num_returns=1, timeout=POLL_SECONDS)
        ended = []
        for task in ready:
            row = self._tasks.pop(task)
            try:
                outcome = self._ray.get(task)
            except self._ray.exceptions.TaskCancelledError:
                outcome = Outcome("interrupted", {}, 0.0, 0)
            except self._ray.exceptions.RayTaskError as error:
                outcome = Outcome("failed", {"why": "unexpected", "message": str(error)[-2000:]}, 0.0, 0)
            except self._ray.exceptions.RayError as error:  # the worker or its node is gone
                message = f"the worker of Ray died: {str(error).splitlines()[0]}"
                outcome = Outcome("died", {"why": "died", "message": message}, 0.0, 0)
            ended.append((row, outcome))
        return [], ended

    def stop(self) -> None:
        """Cancel every task; its item's process is killed with it."""
        for task in self._tasks:
            self._ray.cancel(task)

    def close(self) -> None:
        """Leave the cluster; one that was begun here ends."""
        for task in self._tasks:
            self._ray.cancel(task, force=True)
        self._tasks.clear()
        if self._began_it:
            self._ray.shutdown()
