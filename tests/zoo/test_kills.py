"""A zoo that is killed at random moments until it is done equals one that was left alone, byte for byte."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from surgery.zoo.run import run_zoo
from surgery.zoo.zoo import open_zoo, zoo_status
from tests.anatomy.builders import bare_source
from tests.commands.conftest import PROGRAM
from tests.conversion.conftest import tree
from tests.families import TINY, is_bounded
from tests.zoo.conftest import BROKEN, FAMILIES, broken_source, states, write_manifest

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no kill -9 there")

MOST_KILLS = 400


def run_and_kill(manifest: Path, seconds: Sequence[float]) -> list[int]:
    """Run the zoo, kill -9 after each of these times in turn, until a run ends by itself; returns exit codes."""
    codes: list[int] = []
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for delay in seconds:
        process = subprocess.Popen(
            [*PROGRAM, "zoo", "run", str(manifest), "--json"],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment,
        )  # fmt: skip
        try:
            _, said = process.communicate(timeout=delay)
        except subprocess.TimeoutExpired:
            process.kill()  # the program alone: what it started has to notice by itself
            _, said = process.communicate()
        codes.append(process.returncode)
        if process.returncode != -signal.SIGKILL:
            assert process.returncode in (0, 5), said.decode()
            return codes
    raise AssertionError(f"not done after {len(codes)} kills")


def growing(seed: int, first: float, growth: float) -> list[float]:
    """Times at random, longer from one to the next, so that a slow machine gets done as well."""
    draw = random.Random(seed)
    return [draw.uniform(0.3, 1.0) * first * growth**number for number in range(MOST_KILLS)]


def same_results(killed: Path, undisturbed: Path) -> None:
    """Equal outputs, no leftovers, and the same row for every item."""
    assert [zoo_status(path)["ended"] for path in (killed, undisturbed)] == [True, True]
    one, other = (
        {item["item"]: (item["state"], item["reason"], item["fingerprint"]) for item in zoo_status(path)["items"]}
        for path in (killed, undisturbed)
    )
    assert one == other
    results: list[dict[str, Any]] = []
    for manifest in (killed, undisturbed):
        output = manifest.parent / "out"
        assert not [path for path in output.iterdir() if ".partial-" in path.name or ".replaced-" in path.name]
        results.append({path.name: tree(path) for path in output.iterdir() if path.is_dir() and path.name[0] != "."})
    assert results[0].keys() == results[1].keys()
    for name, content in results[0].items():
        assert content == results[1][name], name


@pytest.mark.slow
def test_a_small_zoo_killed_until_it_is_done(tmp_path: Path) -> None:
    for family in FAMILIES[:3]:
        bare_source(tmp_path / "models" / family, family)
    for kind in ("cut", "no-json"):
        broken_source(tmp_path / "models" / f"broken-{kind}", kind)
    killed = write_manifest(tmp_path)
    codes = run_and_kill(killed, growing(3, 1.5, 1.4))
    assert -signal.SIGKILL in codes and codes[-1] == 5
    alone = tmp_path / "alone"
    alone.mkdir()
    undisturbed = write_manifest(alone, models=[{"path": "../models/*"}])
    run_zoo(open_zoo(undisturbed))
    same_results(killed, undisturbed)
    assert sorted(states(zoo_status(killed)).values()) == ["done"] * 3 + ["refused"] * 2


@pytest.mark.slow
@pytest.mark.timeout(5400)
def test_a_hundred_models_of_every_family_and_each_kind_of_broken(make_source: Any, tmp_path: Path) -> None:
    """100 random checkpoints over the whole table, sharded or not; every tenth is verified with torch."""
    models = tmp_path / "models"
    entries: list[dict[str, Any]] = [{"path": "models/broken-*"}]
    for number in range(100):
        family = list(TINY)[number % len(TINY)]
        source = shutil.copytree(make_source(family, sharded=bool(number // len(TINY) % 2)), models / f"m{number:03}")
        config = json.loads((source / "config.json").read_text())
        config["note"] = number  # no two alike
        (source / "config.json").write_text(json.dumps(config))
        level: Any = {"layers": 1} if number % 25 == 10 else "files"
        form = ("anchored", "bias", "logn", "paper")[number % 4]
        if form == "logn" and is_bounded(source):
            form = "anchored"  # n never gets beyond N
        change = {"ssmax": {"form": form, "layers": "all"}}
        entries.append({"path": f"models/m{number:03}", "verify": level, "change": change})
    for kind in BROKEN:
        broken_source(models / f"broken-{kind}", kind)
    killed = write_manifest(tmp_path, models=entries, retries=0)
    codes = run_and_kill(killed, growing(7, 12.0, 1.05))
    alone = tmp_path / "alone"
    alone.mkdir()
    for entry in entries:
        entry["path"] = f"../{entry['path']}"
    undisturbed = write_manifest(alone, models=entries, retries=0)
    run_zoo(open_zoo(undisturbed))
    same_results(killed, undisturbed)
    found = list(states(zoo_status(killed)).values())
    counts = {state: found.count(state) for state in set(found)}
    print(f"\n{len(codes) - 1} kills; {counts}; {len(TINY)} families")
    assert counts == {"done": 100, "refused": len(BROKEN)} and codes.count(-signal.SIGKILL) >= 5
