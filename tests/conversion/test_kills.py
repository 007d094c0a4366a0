"""kill -9 at every step and at moments drawn at random: no output or a whole one, and the next run succeeds."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from surgery.conversion import convert
from tests.conversion.conftest import MakeKind, tree

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no kill -9 there")

SOURCE = "source"
RANDOM_KILLS = 12
# A process of its own without threads, which forks a child for each kill: a start of Python for each would take long.
DRIVER = """
import json, os, random, signal, sys, time
from pathlib import Path
from surgery.conversion import execute, make_plan

source, target, random_kills = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
old, new = (make_plan(source, [{"name": "ssmax", "form": form}]) for form in ("logn", "anchored"))

def child(work):
    pid = os.fork()
    if pid == 0:
        try:
            work()
        finally:
            os._exit(0)
    return pid

def run(out, force, kill):
    execute(new, out, force=force, on_step=lambda step: os.kill(os.getpid(), signal.SIGKILL) if step == kill else None)

report = {}
for kind in ("fresh", "forced"):
    force = kind == "forced"
    def place(name):
        out = target / f"{kind}-{name.replace(' ', '_')}" / "out"
        out.parent.mkdir()
        if force:
            execute(old, out)
        return out
    steps = []
    begin = time.perf_counter()
    execute(new, place("undisturbed"), force=force, on_step=steps.append)
    duration = time.perf_counter() - begin
    for step in steps:
        out = place(step)
        _, status = os.waitpid(child(lambda: run(out, force, step)), 0)
        report[str(out.parent)] = os.waitstatus_to_exitcode(status)
    draw = random.Random(5)
    for number in range(random_kills):
        out = place(f"random-{number}")
        pid = child(lambda: run(out, force, None))
        time.sleep(draw.uniform(0, 0.7 * duration))
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        report[str(out.parent)] = os.waitstatus_to_exitcode(status)
json.dump(report, sys.stdout)
"""


@pytest.fixture(scope="module")
def killed(make_kind: MakeKind, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, int]]:
    """The source, and for each folder in which a conversion was killed the exit status of it."""
    place = tmp_path_factory.mktemp("killed")
    source = Path(shutil.copytree(make_kind("adorned"), place / SOURCE))
    process = subprocess.run(
        [sys.executable, "-c", DRIVER, str(source), str(place), str(RANDOM_KILLS)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert process.returncode == 0, process.stderr
    return source, json.loads(process.stdout)


def test_the_source_is_untouched(killed: tuple[Path, dict[str, int]], make_kind: MakeKind) -> None:
    assert tree(killed[0]) == tree(make_kind("adorned"))


@pytest.mark.parametrize("kind", ["fresh", "forced"])
def test_no_output_or_a_whole_one_and_the_next_run_succeeds(
    killed: tuple[Path, dict[str, int]], kind: str, tmp_path: Path
) -> None:
    source, report = killed
    new = tree(convert(source, output=tmp_path / "new").output)
    old = tree(convert(source, form="logn", output=tmp_path / "old").output)
    allowed: list[Any] = [new] if kind == "fresh" else [new, old]
    folders = [Path(folder) for folder in report if Path(folder).name.startswith(f"{kind}-")]
    states = set()
    for folder in folders:
        out = folder / "out"
        states.add(out.exists())
        if out.exists():
            assert tree(out) in allowed, f"{folder.name}: half an output"
        convert(source, output=out, force=True)
        assert tree(out) == new, folder.name
        assert [path.name for path in folder.iterdir()] == ["out"], f"{folder.name}: leftovers"
    assert len(folders) > RANDOM_KILLS + 8
    assert states == {True, False}


def test_every_step_was_killed(killed: tuple[Path, dict[str, int]]) -> None:
    """A kill that came too late would say nothing."""
    by_name = {Path(folder).name: status for folder, status in killed[1].items()}
    at_steps = {name: status for name, status in by_name.items() if "random" not in name}
    assert set(at_steps.values()) == {-9}
    for step in ("locked", "repaired", "created", "kept_files", "wrote_tensors", "wrote_config", "synced", "renamed"):
        assert f"fresh-{step}" in at_steps and f"forced-{step}" in at_steps
    assert {"forced-moved", "forced-discarded"} <= set(at_steps)
    assert sum(name.startswith("fresh-placed") for name in at_steps) >= 2
    assert -9 in {status for name, status in by_name.items() if "random" in name}
