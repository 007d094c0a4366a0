"""A run: outputs equal single conversions, every item is isolated, and nothing is done twice."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest

from surgery.checkpoint import StagedFolder
from surgery.checkpoint.locks import FileLock
from surgery.conversion import convert
from surgery.errors import OutputBusyError, UsageError
from surgery.reporting import zoo as reporting
from surgery.verification import verify
from surgery.zoo import plan as plan_module
from surgery.zoo import worker
from surgery.zoo.engines import local as local_engine
from surgery.zoo.item_process import ItemProcess, _kill_tree, request_for, run_isolated
from surgery.zoo.ledger import Ledger, read_ledger
from surgery.zoo.outputs import OUT_OF_DATE
from surgery.zoo.plan import folder_id
from surgery.zoo.run import run_zoo
from surgery.zoo.summaries import write_summary
from surgery.zoo.zoo import zoo_status
from tests.checkpoint.builders import listing
from tests.conversion.conftest import tree
from tests.zoo.conftest import MakeZoo, states


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def workers() -> list[psutil.Process]:
    """Processes of items that this process has started."""
    found = []
    for child in psutil.Process().children(recursive=True):
        try:
            if any("surgery.zoo.worker" in part for part in child.cmdline()):
                found.append(child)
        except psutil.Error:
            continue
    return found


@pytest.mark.parametrize("name", ["config.json", "report.html"])
def test_a_folder_of_something_else_is_no_output(make_zoo: MakeZoo, name: str) -> None:
    zoo = make_zoo()
    zoo.output.mkdir(parents=True)
    (zoo.output / name).write_text("mine")
    with pytest.raises(UsageError, match=name):
        run_zoo(zoo)
    assert [path.name for path in zoo.output.iterdir()] == [name] and (zoo.output / name).read_text() == "mine"


def test_outputs_are_those_of_single_commands(make_zoo: MakeZoo, tmp_path: Path) -> None:
    zoo = make_zoo(["llama", "qwen2"], broken=["cut"], models=[
        {"path": "models/llama"},
        {"path": "models/qwen2", "change": {"ssmax": {"form": "bias"}}, "verify": "none"},
        {"path": "models/broken-cut"},
    ])  # fmt: skip
    told: list[str] = []
    summary = run_zoo(zoo, on_event=lambda event: told.append(event["event"]))
    assert states(summary) == {"llama-ssmax": "done", "qwen2-ssmax": "done", "broken-cut-ssmax": "refused"}
    single = convert(tmp_path / "models" / "llama", output=tmp_path / "single" / "llama-ssmax").output
    verify(single, against=tmp_path / "models" / "llama", files_only=True)
    assert tree(zoo.output / "llama-ssmax") == tree(single)
    bias = convert(tmp_path / "models" / "qwen2", form="bias", output=tmp_path / "single" / "bias").output
    assert tree(zoo.output / "qwen2-ssmax") == tree(bias)
    assert names(zoo.output) == ["llama-ssmax", "qwen2-ssmax"]
    assert told[0] == "run" and told[-1] == "ended" and told.count("done") == 2 and "stage" in told
    item = next(item for item in summary["items"] if item["item"] == "llama-ssmax")
    assert item["verdict"] == "7 checks passed" and item["seconds"] > 0 and item["peak"] > 0
    # Again: nothing is begun, nothing is touched.
    before = [listing(zoo.output / name) for name in names(zoo.output)]
    told.clear()
    assert states(run_zoo(zoo, on_event=lambda event: told.append(event["event"]))) == states(summary)
    assert told == ["run", "failed", "ended"]
    assert [listing(zoo.output / name) for name in names(zoo.output)] == before


def test_what_was_mended_is_done_by_the_next_run_and_retry_does_nothing_else(make_zoo: MakeZoo, tmp_path: Path) -> None:
    zoo = make_zoo(["llama", "qwen2", "qwen3"], broken=["no-json"], verify="none")
    config = tmp_path / "models" / "qwen3" / "config.json"
    whole = config.read_bytes()
    config.write_bytes(b"{")
    assert states(run_zoo(zoo))["qwen3-ssmax"] == "refused"
    config.write_bytes(whole)
    shutil.rmtree(zoo.output / "qwen2-ssmax")
    started: list[str] = []

    def note(event: Mapping[str, Any]) -> None:
        if event["event"] == "started":
            started.append(event["item"])

    run_zoo(zoo, only_failed=True, on_event=note)
    assert started == ["qwen3-ssmax"]
    # An output that was deleted since is done again.
    assert states(run_zoo(zoo, on_event=note))["qwen2-ssmax"] == "done"
    assert started == ["qwen3-ssmax", "qwen2-ssmax"] and (zoo.output / "qwen2-ssmax").is_dir()


@pytest.mark.parametrize(
    ("limits", "why", "part"),
    [
        ({"time": 0.05}, "time", "longer than its limit of 0.1 s"),
        ({"memory": "10 MB"}, "refused", "needs about 150.0 MB of memory, its limit is 10.0 MB"),
        ({"disk": 10}, "refused", "limit is 10 B"),
    ],
)
def test_limits(limits: dict[str, Any], why: str, part: str, make_zoo: MakeZoo) -> None:
    zoo = make_zoo(["llama"], limits=limits, retries=0)
    (item,) = run_zoo(zoo)["items"]
    assert (item["why"], part in item["reason"]) == (why, True), item
    assert names(zoo.output) == [] and workers() == []
    # With the limit gone the next run does it.
    assert states(run_zoo(make_zoo(["llama"]))) == {"llama-ssmax": "done"}


def test_a_process_above_its_memory_is_killed(make_zoo: MakeZoo, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it needs more than the plan has estimated."""
    monkeypatch.setattr(plan_module, "LIGHT_BYTES", 1_000_000)
    (item,) = run_zoo(make_zoo(["llama"], limits={"memory": "5 MB"}, retries=0))["items"]
    assert item["why"] == "memory" and "used " in item["reason"] and "its limit is 5.0 MB" in item["reason"]


def test_a_kill_reaches_children_that_left_the_group(tmp_path: Path) -> None:
    """What an item starts, ends with it, even in a session of its own."""
    code = (
        "import subprocess, sys, time; "
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'], start_new_session=True); "
        "print(child.pid, flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stdout is not None
    child = psutil.Process(int(process.stdout.readline()))
    _kill_tree(process.pid)
    assert process.wait(10) == -signal.SIGKILL
    child.wait(10)
    process.stdout.close()


def test_a_process_that_is_killed_from_outside_is_begun_again(make_zoo: MakeZoo) -> None:
    zoo = make_zoo(["llama"], verify="none", retries=1)
    attempts: list[int] = []

    def murder(event: Mapping[str, Any]) -> None:
        if event["event"] == "started":
            attempts.append(event["attempt"])
            if event["attempt"] == 1:
                threading.Thread(target=kill_first).start()

    def kill_first() -> None:
        while not (found := workers()):
            time.sleep(0.01)
        found[0].kill()

    assert states(run_zoo(zoo, on_event=murder)) == {"llama-ssmax": "done"}
    assert attempts == [1, 2] and names(zoo.output) == ["llama-ssmax"]


def test_one_that_always_dies_fails_with_what_it_said(make_zoo: MakeZoo, monkeypatch: pytest.MonkeyPatch) -> None:
    zoo = make_zoo(["llama"], verify="none", retries=1)
    monkeypatch.setenv("PYTHONHOME", "/nonexistent")  # no Python begins there
    (item,) = run_zoo(zoo)["items"]
    assert item["state"] == "failed" and item["why"] == "died" and "ended with code" in item["reason"]
    events = [json.loads(line)["event"] for line in zoo.ledger.read_text().splitlines()]
    assert events == ["ledger", "run", "started", "interrupted", "started", "failed", "ended"]


def test_an_item_dies_with_whoever_started_it(make_zoo: MakeZoo, tmp_path: Path) -> None:
    """A closed pipe, as the item sees a kill of its starter."""
    row = make_zoo(["llama"]).plan().rows[0]
    process = ItemProcess(request_for(row), tmp_path / "log")
    assert process._process.stdin is not None
    process._process.stdin.close()
    assert process._process.wait(30) in (-signal.SIGKILL, 0)


def test_a_failed_verification_leaves_no_output(make_zoo: MakeZoo, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process: the worker's own steps, with a file that is spoiled between writing and checking."""
    row = make_zoo(["llama"]).plan().rows[0]
    real = worker._verify

    def spoiled(request: Any, source: Path, folder: Path, tell: Any) -> Any:
        with (folder / "modeling_surgery.py").open("a") as file:
            file.write("#")
        return real(request, source, folder, tell)

    monkeypatch.setattr(worker, "_verify", spoiled)
    with pytest.raises(worker.VerificationError, match="code is this version's"):
        worker.convert_item(request_for(row), lambda kind, **content: None)
    assert not row.item.output.parent.exists()


def test_a_source_that_changes_during_the_run_is_refused(make_zoo: MakeZoo, tmp_path: Path) -> None:
    row = make_zoo(["llama"]).plan().rows[0]
    (tmp_path / "models" / "llama" / "new.txt").write_text("")
    outcome = run_isolated(request_for(row), tmp_path / "log")
    assert outcome.status == "failed" and "changed since" in outcome.content["message"]


def test_an_output_that_another_process_holds_is_waited_for(make_zoo: MakeZoo, tmp_path: Path) -> None:
    """The processes of a run that was just killed may live a moment longer."""
    row = make_zoo(["llama"], verify="none").plan().rows[0]
    holder = StagedFolder(row.item.output)
    holder.__enter__()
    threading.Timer(1.0, lambda: holder.__exit__(None, None, None)).start()
    assert run_isolated(request_for(row), tmp_path / "log").status == "done"


def test_two_runs_on_one_output(make_zoo: MakeZoo) -> None:
    zoo = make_zoo(["llama"], verify="none")
    second: list[type] = []

    def again(plan: Any) -> None:
        with pytest.raises(OutputBusyError, match="another run is working on the zoo in out") as caught:
            run_zoo(zoo)
        second.append(caught.type)

    assert states(run_zoo(zoo, on_plan=again)) == {"llama-ssmax": "done"} and second


def test_status_while_a_run_goes_on(make_zoo: MakeZoo) -> None:
    zoo = make_zoo(["llama", "qwen2"], verify="none", parallel={"items": 1})
    seen: list[dict[str, str]] = []
    activity: list[bool] = []
    course: list[str] = []

    def look(event: Mapping[str, Any]) -> None:
        if event["event"] in ("started", "done"):
            summary = zoo.summary()
            seen.append(states(summary))
            activity.append(summary["active"] and summary["items"][0]["seconds"] is not None)
            course.append(reporting.course(summary))

    run_zoo(zoo, on_event=look)
    assert seen[0] == {"llama-ssmax": "running", "qwen2-ssmax": "waiting"} and activity[0] and course[0] == "running"
    assert not zoo.summary()["active"] and not zoo.lock.exists()
    assert seen[1] == {"llama-ssmax": "done", "qwen2-ssmax": "waiting"}


def test_a_run_that_was_killed_is_not_called_running(make_zoo: MakeZoo) -> None:
    """Its lock died with it; the file of the lock may be left."""
    zoo = make_zoo(["llama", "qwen2"], verify="none")
    assert reporting.course(zoo.summary()).startswith("not started")
    zoo.ledger.parent.mkdir(parents=True)
    with Ledger(zoo.ledger) as ledger:
        ledger.write("run", run="r", engine="local", items=2)
        ledger.write("started", run="r", item="llama-ssmax", fingerprint=None, work="w")
    for left in (False, True):
        if left:
            zoo.lock.write_text("")
        summary = zoo.summary()
        assert states(summary)["llama-ssmax"] == "running" and not summary["active"] and not summary["ended"]
        assert reporting.course(summary) == "stopped before its end: `surgery zoo run` resumes it"
        assert reporting.headline(summary) == "0 of 2 done, 1 interrupted, 1 waiting"
        page = reporting.render_zoo_page(summary)
        assert ">interrupted<" in page and "stopped before its end" in page
    held = FileLock(zoo.lock, "it")
    held.acquire()
    assert zoo.summary()["active"] and "1 running" in reporting.headline(zoo.summary())
    held.release()


def test_a_ledger_that_was_moved_away_keeps_nobody_out(make_zoo: MakeZoo) -> None:
    """The summary and the page beside it are marked as files of this tool."""
    zoo = make_zoo(["llama"], verify="none")
    write_summary(run_zoo(zoo), zoo.output)
    zoo.ledger.unlink()
    assert "not in the ledger; --force" in run_zoo(zoo)["items"][0]["reason"]
    zoo.ledger.unlink()
    assert states(run_zoo(zoo, force=True)) == {"llama-ssmax": "done"}
    zoo.ledger.unlink()
    (zoo.output / "summary.json").write_text('{"kind": "other"}')
    with pytest.raises(UsageError, match=r"holds summary\.json"):
        run_zoo(zoo, force=True)


def test_ctrl_c_cleans_up_and_the_next_run_goes_on(make_zoo: MakeZoo) -> None:
    zoo = make_zoo(["llama", "qwen2", "qwen3"], verify="none", parallel={"items": 1})

    def interrupt(event: Mapping[str, Any]) -> None:
        if event["event"] == "stage" and event["item"] == "qwen2-ssmax":
            raise KeyboardInterrupt

    summary = run_zoo(zoo, on_event=interrupt)
    found = states(summary)
    # The item at work may be whole before its worker hears of the interruption: done then, and never half.
    assert not summary["ended"] and found.pop("qwen2-ssmax") in ("waiting", "done")
    assert found == {"llama-ssmax": "done", "qwen3-ssmax": "waiting"}
    assert set(names(zoo.output)) in ({"llama-ssmax"}, {"llama-ssmax", "qwen2-ssmax"}) and workers() == []
    run = read_ledger(zoo.ledger).run
    summary = run_zoo(zoo)
    assert summary["ended"] and set(states(summary).values()) == {"done"} and read_ledger(zoo.ledger).run == run


def test_failures_of_a_killed_run_are_left_until_it_has_ended(make_zoo: MakeZoo) -> None:
    zoo = make_zoo(["llama", "qwen2"], verify="none")
    rows = {row.item.name: row for row in zoo.plan().rows}
    (zoo.ledger.parent / "logs").mkdir(parents=True)
    with Ledger(zoo.ledger) as ledger:
        row = rows["llama-ssmax"]
        ledger.write("run", run="r", engine="local", items=2)
        ledger.write(
            "failed",
            run="r",
            item="llama-ssmax",
            fingerprint=row.fingerprint,
            work=row.work_fingerprint,
            why="time",
            message="slow",
        )
    assert states(run_zoo(zoo)) == {"llama-ssmax": "failed", "qwen2-ssmax": "done"}
    assert states(run_zoo(zoo)) == {"llama-ssmax": "done", "qwen2-ssmax": "done"}


def test_force_replaces_what_is_out_of_date(make_zoo: MakeZoo, tmp_path: Path) -> None:
    run_zoo(make_zoo(["llama"], verify="none"))
    changed = make_zoo(["llama"], verify="none", operations=[{"name": "ssmax", "form": "logn"}])
    assert states(changed.summary()) == {"llama-ssmax": "changed"}
    # Status, plan and run say the same words.
    said = {changed.summary()["items"][0]["reason"], changed.plan().rows[0].reason}
    assert states(run_zoo(changed)) == {"llama-ssmax": "refused"}
    assert {*said, changed.summary()["items"][0]["reason"]} == {OUT_OF_DATE}
    assert states(run_zoo(changed, force=True)) == {"llama-ssmax": "done"}
    single = convert(tmp_path / "models" / "llama", form="logn", output=tmp_path / "single").output
    assert tree(changed.output / "llama-ssmax") == tree(single)


def test_a_kill_between_the_renaming_and_the_ledger_loses_nothing(make_zoo: MakeZoo) -> None:
    zoo = make_zoo(["llama", "qwen2"], verify="none")
    run_zoo(zoo)
    before = tree(zoo.output / "qwen2-ssmax")
    lines = zoo.ledger.read_text().splitlines(keepends=True)
    # What the ledger would hold had it been killed just before the last done, with half a folder left behind.
    last = max(number for number, line in enumerate(lines) if '"event": "done"' in line)
    zoo.ledger.write_text("".join(line for number, line in enumerate(lines[:-1]) if number != last))
    item = json.loads(lines[last])["item"]
    (zoo.output / f"{item}.replaced-0123456789ab").mkdir()
    started: list[str] = []
    summary = run_zoo(zoo, on_event=lambda event: started.append(event["event"]))
    assert set(states(summary).values()) == {"done"} and "started" not in started
    assert tree(zoo.output / "qwen2-ssmax") == before and names(zoo.output) == ["llama-ssmax", "qwen2-ssmax"]


def test_an_output_that_is_to_be_replaced_is_not_taken_for_the_new_one(make_zoo: MakeZoo) -> None:
    """Killed after a forced start: the old folder is still there, but it is out of date."""
    run_zoo(make_zoo(["llama"], verify="none"))
    changed = make_zoo(["llama"], verify="none", operations=[{"name": "ssmax", "form": "logn"}])
    (row,) = changed.plan(force=True).rows
    with Ledger(changed.ledger) as ledger:
        ledger.write("run", run="r", engine="local")
        ledger.write("started", run="r", item=row.item.name, fingerprint=row.fingerprint, work=row.work_fingerprint,
                     replaces=folder_id(row.item.output))  # fmt: skip
    (row,) = changed.plan(force=True).rows
    assert row.state == "ready" and row.replaces_output


def test_memory_and_disk_bound_how_many_run_at_once(make_zoo: MakeZoo, monkeypatch: pytest.MonkeyPatch) -> None:
    zoo = make_zoo(["llama", "qwen2", "qwen3"], verify="none", parallel={"items": 3, "memory": "400 MB"})
    most = 0
    running = 0

    def count(event: Mapping[str, Any]) -> None:
        nonlocal most, running
        running += {"started": 1, "done": -1}.get(event["event"], 0)
        most = max(most, running)

    assert set(states(run_zoo(zoo, on_event=count)).values()) == {"done"}
    assert most == 2  # of 150 MB each
    monkeypatch.setattr(local_engine, "free_bytes", lambda path: 1_000_000_000 + 10)
    full = make_zoo(["gemma2"], verify="none")
    summary = run_zoo(full)
    assert states(summary)["gemma2-ssmax"] == "refused"
    assert "no room" in next(item["reason"] for item in summary["items"] if item["item"] == "gemma2-ssmax")


def test_status_of_a_zoo_that_was_never_run(make_zoo: MakeZoo, tmp_path: Path) -> None:
    make_zoo(["llama"])
    assert states(zoo_status(tmp_path / "zoo.yaml")) == {"llama-ssmax": "waiting"}
    assert not (tmp_path / "out").exists()
