"""The Ray engine: tasks on a running cluster, or on one that is started on this machine.

A Ray task only starts the item's own process on its node and watches it there, so limits, isolation and the leftovers
of a kill are the same as without Ray. Only the program that was started writes the ledger. Sources and output must have
the same paths on every node.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from surgery.errors import UsageError
from surgery.zoo.engines.base import POLL_SECONDS, ItemEvent
from surgery.zoo.item_process import ItemResult, request_for, run_isolated
from surgery.zoo.manifest import Parallel
from surgery.zoo.plan import PlannedItem


def _task(request: Mapping[str, Any], log: str) -> ItemResult:
    """Runs on the node."""
    return run_isolated(request, Path(log))


class RayEngine:
    """One Ray task for each item; it requests the item's estimated memory as a resource."""

    name = "ray"

    def __init__(self, parallel: Parallel, *, address: str | None = None) -> None:
        """Join the cluster at ``address``, or start one on this machine.

        Raises:
            UsageError: Ray is not installed, or the cluster cannot be reached.
        """
        try:
            import ray
        except ImportError as error:
            raise UsageError(
                "the engine ray needs Ray, which is not installed",
                hint="Run pip install 'model-surgery[ray]', or leave --engine out.",
            ) from error
        self._ray = ray
        self._parallel = parallel
        self._tasks: dict[Any, PlannedItem] = {}
        self._started_cluster = not ray.is_initialized()
        own: dict[str, Any] = {"num_cpus": parallel.items, "include_dashboard": False} if address is None else {}
        try:
            if self._started_cluster:
                ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **own)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise UsageError(
                f"the Ray cluster {address or 'on this machine'} cannot be reached: {error}",
                hint="Check it with `ray status`. Without --ray-address a cluster is started on this machine.",
            ) from error
        # The schedule retries and counts attempts in the ledger, so Ray must not retry.
        self._task = ray.remote(max_retries=0)(_task)

    @property
    def running(self) -> int:
        """Number of tasks that were given to Ray and have not ended."""
        return len(self._tasks)

    def obstacle(self, planned: PlannedItem) -> str | None:
        """Why the item cannot start now: the number of items, or no node has its memory, even when idle."""
        if self.running >= self._parallel.items:
            return f"{self.running} items are running"
        most = max(
            (node["Resources"].get("memory", 0) for node in self._ray.nodes() if node["Alive"]),
            default=0,
        )
        if planned.memory > most:
            return f"it needs about {planned.memory:,} bytes of memory, the largest node of the cluster has {most:,.0f}"
        return None

    def start(self, planned: PlannedItem, log: Path) -> None:
        """Give the item to Ray, which waits for a node with the resources."""
        task = self._task.options(num_cpus=1, memory=planned.memory, name=planned.item.name)
        self._tasks[task.remote(request_for(planned), str(log))] = planned

    def poll(self) -> tuple[list[ItemEvent], list[tuple[PlannedItem, ItemResult]]]:
        """The items that have ended. A running task sends no events."""
        if not self._tasks:
            return [], []
        ready, _ = self._ray.wait(list(self._tasks), num_returns=1, timeout=POLL_SECONDS)
        ended = []
        for task in ready:
            planned = self._tasks.pop(task)
            try:
                result = self._ray.get(task)
            except self._ray.exceptions.TaskCancelledError:
                result = ItemResult("interrupted", {}, 0.0, 0)
            except self._ray.exceptions.RayTaskError as error:
                result = ItemResult("failed", {"why": "unexpected", "message": str(error)[-2000:]}, 0.0, 0)
            except self._ray.exceptions.RayError as error:  # the worker or its node died
                message = f"the Ray worker died: {str(error).splitlines()[0]}"
                result = ItemResult("died", {"why": "died", "message": message}, 0.0, 0)
            ended.append((planned, result))
        return [], ended

    def stop(self) -> None:
        """Cancel every task; the process of its item is killed with it."""
        for task in self._tasks:
            self._ray.cancel(task)

    def close(self) -> None:
        """Leave the cluster; end it if it was started here."""
        for task in self._tasks:
            self._ray.cancel(task, force=True)
        self._tasks.clear()
        if self._started_cluster:
            self._ray.shutdown()
