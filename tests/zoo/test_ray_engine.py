"""The engine of Ray on clusters of several processes: same results, same ledger, also when some of them die."""

from __future__ import annotations

import _thread
import builtins
import json
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from surgery.errors import UsageError
from surgery.zoo.engines.ray import RayEngine
from surgery.zoo.manifest import Parallel
from surgery.zoo.run import run_zoo
from tests.conversion.conftest import tree
from tests.zoo.conftest import MakeZoo, states
from tests.zoo.test_run import names, workers

slow = pytest.mark.slow


def kill_task(name: str) -> None:
    """kill -9 to the worker of Ray that runs the task of this name, once there is one."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        for process in psutil.process_iter(["name", "cmdline"]):
            if f"ray::{name}" in " ".join(process.info["cmdline"] or []):
                process.kill()
                return
        time.sleep(0.02)


@pytest.fixture
def cluster() -> Iterator[Any]:
    """Two nodes on this machine, each with processes of its own."""
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'model-surgery[ray]'")
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        yield made
    finally:
        made.shutdown()


@slow
def test_a_worker_that_is_killed_is_begun_again(make_zoo: MakeZoo, tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'model-surgery[ray]'")
    zoo = make_zoo(["llama", "qwen2", "qwen3", "gemma2"], broken=["cut"], parallel={"items": 3}, retries=1)
    attempts: list[tuple[str, int]] = []

    def murder(event: Mapping[str, Any]) -> None:
        if event["event"] == "started":
            attempts.append((event["item"], event["attempt"]))
            if attempts[-1] == ("llama-ssmax", 1):
                threading.Thread(target=kill_task, args=("llama-ssmax",)).start()

    summary = run_zoo(zoo, engine="ray", on_event=murder)
    assert sorted(states(summary).values()) == ["done"] * 4 + ["refused"] and summary["engine"] == "ray"
    assert ("llama-ssmax", 2) in attempts and len(attempts) == 5
    died = [json.loads(line) for line in zoo.ledger.read_text().splitlines() if '"died"' in line]
    assert [(event["event"], event["item"]) for event in died] == [("interrupted", "llama-ssmax")]
    # The same as without Ray, and Ray's own engine finds nothing to do afterwards.
    (tmp_path / "alone").mkdir()
    local = make_zoo(["llama"], output="alone/out", models=[{"path": "models/[lqg]*"}])
    assert states(run_zoo(local))["llama-ssmax"] == "done"
    for name in names(local.output):
        assert tree(local.output / name) == tree(zoo.output / name), name
    assert workers() == [] and not [path for path in zoo.output.iterdir() if ".partial-" in path.name]


@slow
def test_a_node_that_is_lost_is_made_up_for_by_another(cluster: Any, make_zoo: MakeZoo) -> None:
    node = cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    zoo = make_zoo(["llama", "qwen2", "qwen3", "gemma2"], parallel={"items": 2}, retries=2)
    lost: list[bool] = []

    def lose(event: Mapping[str, Any]) -> None:
        if event["event"] == "started" and len(lost) == 0 and event["item"] == "qwen2-ssmax":
            lost.append(True)
            threading.Thread(target=cluster.remove_node, args=(node,), kwargs={"allow_graceful": False}).start()

    summary = run_zoo(zoo, engine="ray", address=cluster.address, on_event=lose)
    assert set(states(summary).values()) == {"done"}, summary["items"]
    assert lost and len(names(zoo.output)) == 4


@slow
def test_ctrl_c_and_limits_are_as_without_ray(cluster: Any, make_zoo: MakeZoo) -> None:
    slow_one = make_zoo(["llama"], limits={"time": 0.05}, retries=0)
    (item,) = run_zoo(slow_one, engine="ray", address=cluster.address)["items"]
    assert (item["state"], item["why"]) == ("failed", "time")
    too_big = make_zoo(["llama"], verify="none", parallel={"items": 1})
    engine = RayEngine(Parallel(), address=cluster.address)
    assert "the largest node of the cluster" in str(engine.obstacle(replace(too_big.plan().rows[0], memory=10**15)))
    engine.close()
    zoo = make_zoo(["llama", "qwen2", "qwen3"], parallel={"items": 1})

    def interrupt(event: Mapping[str, Any]) -> None:
        if event["event"] == "started" and event["item"] == "qwen2-ssmax":
            threading.Timer(0.3, _thread.interrupt_main).start()

    summary = run_zoo(zoo, engine="ray", address=cluster.address, on_event=interrupt)
    assert not summary["ended"] and states(summary)["qwen3-ssmax"] == "waiting"
    assert states(summary)["llama-ssmax"] == "done" and workers() == []
    summary = run_zoo(zoo, engine="ray", address=cluster.address)
    assert summary["ended"] and set(states(summary).values()) == {"done"}


def test_without_ray_the_error_says_what_to_install(make_zoo: MakeZoo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match="not installed") as caught:
        run_zoo(make_zoo(["llama"]), engine="ray")
    assert "model-surgery[ray]" in str(caught.value)
    # The local engine does not ask for it.
    real = builtins.__import__

    def guarded(name: str, *rest: Any, **options: Any) -> Any:
        assert name.partition(".")[0] != "ray"
        return real(name, *rest, **options)

    monkeypatch.setattr(builtins, "__import__", guarded)
    assert states(run_zoo(make_zoo(["llama"], verify="none"))) == {"llama-ssmax": "done"}
