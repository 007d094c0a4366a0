"""``surgery zoo`` as a user meets it: tables, JSON, events, exit codes; and that a plan is light."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from surgery.conversion import convert
from surgery.reporting.zoo import render_zoo_page
from surgery.zoo.manifest import EXAMPLE, Manifest
from surgery.zoo.run import run_zoo
from surgery.zoo.zoo import open_zoo
from tests.anatomy.builders import bare_source
from tests.checkpoint.builders import listing
from tests.commands.conftest import PROGRAM
from tests.commands.test_output import HEAVY, PROBE
from tests.hub import Hub
from tests.zoo.conftest import broken_source, write_manifest


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    """Two models and a broken one."""
    for family in ("llama", "qwen2"):
        bare_source(tmp_path / "models" / family, family)
    broken_source(tmp_path / "models" / "broken", "no-json")
    return write_manifest(tmp_path, verify="none")


def test_a_plan_warns_of_what_will_be_done_alone(surgery: Any, tmp_path: Path) -> None:
    """A warning about a finished item asks for nothing."""
    bare_source(tmp_path / "models" / "llama", "llama")
    manifest = write_manifest(tmp_path, verify="none", operations=[{"name": "screening", "open": True}])
    assert "starts open" in surgery("zoo", "plan", manifest).err
    assert surgery("zoo", "run", manifest, "-q").code == 0
    finished = surgery("zoo", "plan", manifest)
    assert "1 done" in finished.out and "starts open" not in finished.err


def test_plan_run_status_report(surgery: Any, manifest: Path, tmp_path: Path) -> None:
    before = listing(tmp_path)
    planned = surgery("zoo", "plan", manifest, "--json")
    assert planned.code == 5 and listing(tmp_path) == before
    document = planned.document()
    assert document["kind"] == "zoo-plan" and document["counts"] == {"ready": 2, "done": 0, "failed": 0, "refused": 1}
    table = surgery("zoo", "plan", manifest)
    assert table.code == 5
    for part in ("llama-ssmax", "2 ready, 1 refused", "not valid JSON", "2 x ssmax: form anchored", " free"):
        assert part in table.out, part
    events = tmp_path / "events.jsonl"
    ran = surgery("zoo", "run", manifest, "--json", "--events", events)
    # No terminal here: a log has a line for each start and each end, and stdout the document alone.
    assert ran.code == 5 and "broken-ssmax: refused: config.json is not valid JSON" in ran.err
    assert "llama-ssmax: started (1 of 2)\n" in ran.err and re.search(r"llama-ssmax: done, [\d.]+ s\n", ran.err)
    assert ran.err.splitlines()[0] == "zoo: 2 to do, 0 already done" and len(ran.err.splitlines()) == 6
    assert ran.document()["counts"]["done"] == 2 and ran.document()["kind"] == "zoo"
    kinds = [json.loads(line)["event"] for line in events.read_text().splitlines()]
    assert kinds[0] == "run" and kinds[-1] == "ended" and kinds.count("done") == 2
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["schema"] == 1 and [item["state"] for item in summary["items"]] == ["refused", "done", "done"]
    page = (tmp_path / "out" / "report.html").read_text()
    assert "2 of 3 done, 1 refused" in page and not re.search(r"<script|https?://", page)
    status = surgery("zoo", "status", manifest)
    assert status.code == 5 and "zoo: 2 of 3 done, 1 refused" in status.out and "not valid JSON" in status.out
    (tmp_path / "out" / "report.html").unlink()
    written = surgery("zoo", "report", manifest, "--json")
    assert written.code == 0 and (tmp_path / "out" / "report.html").read_text() == page
    assert surgery("zoo", "retry", manifest).code == 5


def test_a_manifest_is_written_and_checked(surgery: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    bare_source(tmp_path / "models" / "one")
    made = surgery("zoo", "init", "models/*", "-o", "sub.yaml", "--to", "ssmx")
    assert made.code == 2 and "ssmax" in made.err and not Path("sub.yaml").exists(), "valid, or not written"
    assert surgery("zoo", "init", "models/*").out.endswith("Next: surgery zoo check zoo.yaml\n")
    checked = surgery("zoo", "check", "zoo.yaml", "--json").document()
    assert checked["valid"] and checked["items"] == ["one-ssmax"]
    assert surgery("zoo", "check", "zoo.yaml").out.startswith("zoo.yaml: valid, 1 item\n")
    assert surgery("zoo", "init").code == 2, "not replaced"
    assert surgery("zoo", "init", "-o", "example.yaml").code == 0 and Path("example.yaml").read_text() == EXAMPLE
    Path("zoo.yaml").write_text("models: [{pat: models/*}]\noperations: [{name: ssmax}]\noutput: out\n")
    wrong = surgery("zoo", "check", "zoo.yaml", "--json")
    assert wrong.code == 2 and not wrong.document()["valid"]
    assert wrong.document()["problems"][0]["line"] == 1 and "path" in wrong.err
    convert("models/one", output="models/done")
    for given in ("models/*", "models/done"):
        refused = surgery("zoo", "init", given, "-o", "third.yaml")
        assert refused.code == 2 and "models/done: converted already" in refused.err and not Path("third.yaml").exists()
    schema = surgery("zoo", "schema").document()
    assert set(schema["properties"]) == set(Manifest.model_fields) and schema["additionalProperties"] is False


def test_push(surgery: Any, hub: Hub, tmp_path: Path) -> None:
    bare_source(tmp_path / "models" / "llama", "llama")
    manifest = write_manifest(tmp_path, verify="none")
    ran = surgery("zoo", "run", manifest, "--push", "you")
    assert ran.code == 2 and "cannot write to 'you'" in ran.err and not (tmp_path / "out").exists()
    events = tmp_path / "events.jsonl"
    ran = surgery("zoo", "run", manifest, "--push", "me", "--events", events)
    assert ran.code == 0 and "me/llama-ssmax" in ran.out and "1 of 1 done, 1 uploaded" in ran.out
    assert [json.loads(line)["event"] for line in events.read_text().splitlines()][-2:] == ["pushing", "pushed"]
    hub.repositories["team/llama-ssmax"] = hub.repositories["me/llama-ssmax"]
    ran = surgery("zoo", "run", manifest, "--push", "team")
    assert ran.code == 5 and "not uploaded" in ran.out and "team/llama-ssmax: the repository" in ran.out


def test_exit_codes(surgery: Any, manifest: Path, tmp_path: Path) -> None:
    (tmp_path / "models" / "broken").rename(tmp_path / "broken")
    assert surgery("zoo", "plan", manifest).code == 0
    assert surgery("zoo", "report", manifest).code == 2
    retried = surgery("zoo", "retry", manifest)
    assert retried.code == 2 and "nothing was run yet" in retried.err and f"surgery zoo run {manifest}" in retried.err
    assert "not started" in surgery("zoo", "status", manifest).out
    ran = surgery("zoo", "run", manifest, "--quiet")
    assert ran.code == 0 and ran.err == ""
    assert surgery("zoo", "status", manifest).code == 0
    changed = write_manifest(tmp_path, verify="none", operations=[{"name": "ssmax", "form": "bias"}])
    status = surgery("zoo", "status", changed)
    assert status.code == 5 and "2 out of date" in status.out and "--force replaces it" in status.out
    (tmp_path / "out" / "llama-ssmax" / "config.json").write_text("{}")
    status = surgery("zoo", "status", write_manifest(tmp_path, verify="none"))
    assert "1 of 2 done, 1 waiting" in status.out and "its output is damaged" in status.out
    only_broken = write_manifest(tmp_path, models=[{"path": "broken"}])
    assert surgery("zoo", "plan", only_broken).code == 3
    assert surgery("zoo", "run", tmp_path / "none.yaml").code == 2
    assert surgery("zoo", "run", only_broken, "--ray-address", "auto").code == 2
    assert surgery("zoo", "run", only_broken, "--events", tmp_path / "none" / "e").code == 2
    (tmp_path / "zoo.yaml").write_text("modles: []\n")
    wrong = surgery("zoo", "plan", tmp_path / "zoo.yaml")
    assert wrong.code == 2 and "line 1: modles: unknown key; did you mean `models`?" in wrong.err


def test_plans_and_status_are_light(manifest: Path) -> None:
    """Also where there are outputs to look at."""
    run_zoo(open_zoo(manifest))
    calls = [["zoo", "--help"], ["zoo", "plan", str(manifest)], ["zoo", "status", str(manifest)]]
    process = subprocess.run(
        [sys.executable, "-c", PROBE, json.dumps(calls), json.dumps(HEAVY)],
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    found = [json.loads(line) for line in process.stderr.splitlines() if line.startswith("[")]
    assert [loaded for _, loaded in found] == [[], [], []]


def test_the_live_table(manifest: Path) -> None:
    """On a terminal: what runs, and a line with counts and the time that remains."""
    from io import StringIO

    from rich.console import Console

    from surgery.commands.zoo_tables import LiveTable

    console = Console(file=StringIO(), force_terminal=True, width=120)
    with LiveTable(console) as table:
        table.begin(open_zoo(manifest).plan())
        table({"event": "started", "item": "llama-ssmax"})
        table({"event": "stage", "item": "llama-ssmax", "stage": "calibrating"})
        table({"event": "tokens", "item": "llama-ssmax", "done": 250, "total": 1000})
        time.sleep(0.01)
        with console.capture() as calibrating:
            console.print(table._draw())
        table({"event": "stage", "item": "llama-ssmax", "stage": "converting"})
        table({"event": "bytes", "item": "llama-ssmax", "done": 500, "total": 1000})
        time.sleep(0.01)
        table({"event": "started", "item": "qwen2-ssmax"})
        table({"event": "done", "item": "qwen2-ssmax"})
        with console.capture() as captured:
            console.print(table._draw())
        table({"event": "stopping", "running": 1})
        with console.capture() as stopping:
            console.print(table._draw())
    drawn = captured.get()
    for part in ("llama-ssmax", "converting 50%", "MB/s", "1 of 2 done", "items/min", "left"):
        assert part in drawn, part
    assert "calibrating 25%" in calibrating.get() and "tokens/s" in calibrating.get()
    assert "qwen2-ssmax" not in drawn and "Ctrl-C again" in stopping.get()


def test_a_log_shows_each_fifth_of_a_calibration() -> None:
    from rich.console import Console

    from surgery.commands.zoo_tables import LogLines

    console = Console(width=100)
    with console.capture() as captured:
        log = LogLines(console)
        for done in (0, 10, 30, 100):
            log({"event": "tokens", "item": "a-ssmax", "done": done, "total": 100})
    assert captured.get().splitlines() == [f"a-ssmax: calibrating, {share}" for share in ("0%", "20%", "100%")]


@pytest.mark.skipif(sys.platform == "win32", reason="no such signals there")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_says_how_to_go_on(number: int, manifest: Path, tmp_path: Path) -> None:
    events = tmp_path / "events.jsonl"
    process = subprocess.Popen(
        [*PROGRAM, "zoo", "run", str(manifest), "--events", str(events)],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    until = time.monotonic() + 60
    while not (events.is_file() and "started" in events.read_text()) and time.monotonic() < until:
        time.sleep(0.02)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == (130 if number == signal.SIGINT else 143), said
    assert "the same command continues the run" in said and "Traceback" not in said
    assert [path.name for path in (tmp_path / "out").iterdir() if ".partial-" in path.name] == []


@pytest.mark.parametrize("width", [80, 160])
def test_names_have_their_room(width: int, tmp_path: Path, surgery: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """At 80 columns other columns make way for names, and a command to be copied is never broken."""
    from rich.console import Console

    from surgery.commands import console

    name = "SmolLM2-135M-Instruct-converted"
    bare_source(tmp_path / "models" / name)
    pickled = bare_source(tmp_path / "models" / "pickled")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    manifest = write_manifest(tmp_path)
    monkeypatch.setattr(console, "out", Console(width=width))
    planned = surgery("zoo", "plan", manifest)
    ran = surgery("zoo", "run", manifest, "--quiet")
    for shown in (planned.out, ran.out):
        assert f"{name}-ssmax " in shown
        assert re.search(r"^  python -c .*save_pretrained\('pickled-safetensors'\)\"$", shown, flags=re.MULTILINE)
        table = [line for line in shown.splitlines() if "ssmax" in line and "note" not in line]
        assert all(len(line) <= width for line in table)
    assert ("7 checks passed" if width == 160 else "7 passed") in ran.out


def test_notes_are_broken_at_words_on_a_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from io import StringIO

    from rich.console import Console

    from surgery.commands import console, zoo

    bare_source(tmp_path / "models" / "gemma2", "gemma2")
    plan = open_zoo(write_manifest(tmp_path)).plan()
    shown = {}
    for terminal in (True, False):
        file = StringIO()
        monkeypatch.setattr(console, "err", Console(file=file, width=60, force_terminal=terminal, color_system=None))
        zoo._warn(plan)
        shown[terminal] = file.getvalue()
    assert all(len(line) <= 60 for line in shown[True].splitlines()) and len(shown[False].splitlines()) == 2
    assert shown[True].split() == shown[False].split()


def test_a_page_escapes_what_strangers_wrote() -> None:
    item = {
        "item": "<b>x</b>", "source": "<script>1</script>", "operations": "ssmax", "verify": "files",
        "state": "failed", "reason": "<img src=x>", "hint": "<u>", "family": None, "bytes": None,
        "placed": None, "seconds": None,
        "peak": None, "verdict": None, "commit": None, "repository": "<r>", "pushed": None, "push_reason": "<p>",
    }  # fmt: skip
    counts = dict.fromkeys(("done", "failed", "refused", "running", "waiting", "changed"), 0) | {"failed": 1}
    page = render_zoo_page({
        "zoo": "<i>", "tool": "0", "output": "/o", "ended": False, "engine": None, "counts": counts, "bytes": 0,
        "seconds": 0, "items": [item], "pushed": 0, "not_pushed": 1,
    })  # fmt: skip
    assert (
        "<script" not in page and "<img" not in page and "<i>" not in page and "<p>" not in page and "&lt;img" in page
    )
    assert "0 of 1 done, 1 failed, 1 not uploaded" in page and "stopped before its end" in page
