"""kill -9 and errors of the system before every step that changes the file system, for everything that writes.

What must hold after each: no output or a whole one (or the old one), a clear error, the source as it was; and the next
run succeeds and leaves nothing over.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conversion.conftest import MakeKind
from tests.faults.driver import TASKS

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no fork there")
ROOT = Path(__file__).parents[2]


def inject_faults(task: str, source: Path, place: Path, stride: int) -> dict[str, Any]:
    """The report of the driver."""
    copy = Path(shutil.copytree(source, place / "source" / source.name))
    (place / "work").mkdir()
    process = subprocess.run(
        [sys.executable, "-m", "tests.faults.driver", task, str(copy), str(place / "work"), str(stride)],
        capture_output=True, text=True, check=False, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    report = json.loads(process.stdout)
    assert isinstance(report, dict)
    return report


def check(report: dict[str, Any], task: str) -> None:
    assert report["wrong"] == [], "\n".join(report["wrong"])
    assert report["outcomes"].get("killed", 0) > 0 and report["outcomes"].get("refused", 0) > 0
    # The steps are really found: a conversion of two shards makes files, brings them to the disk, and renames.
    if task != "verified":
        assert {"open", "os.mkdir", "os.rename", "fsync", "os.remove"} <= set(report["steps"])
    assert len(report["steps"]) > (5 if task == "verified" else 20)


@pytest.mark.parametrize("task", ["forced", "verified"])
def test_a_sample_of_steps(task: str, make_kind: MakeKind, tmp_path: Path) -> None:
    check(inject_faults(task, make_kind("single"), tmp_path, 17), task)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("task", list(TASKS))
def test_every_step(task: str, make_kind: MakeKind, tmp_path: Path) -> None:
    report = inject_faults(task, make_kind("adorned"), tmp_path, 1)
    check(report, task)
    print(f"\n{task}: {len(report['steps'])} steps; {report['outcomes']}")
