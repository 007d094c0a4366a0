"""The command line, in this process and as a program of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from surgery.commands import console
from tests.anatomy.builders import bare_source

# Never by an installed program of the same name.
PROGRAM = [sys.executable, "-c", "from surgery.commands import main; main()"]


@dataclass(frozen=True)
class Ran:
    """Exit code and both streams."""

    code: int
    out: str
    err: str

    def document(self) -> dict[str, Any]:
        """The one JSON document that stdout holds."""
        found = json.loads(self.out)
        assert isinstance(found, dict)
        return found


def program(*arguments: object, **environment: str) -> Ran:
    """Run ``surgery`` as a process, with stdin closed."""
    process = subprocess.run(
        [*PROGRAM, *map(str, arguments)],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        env={**os.environ, **environment},
        check=False,
        timeout=120,
    )
    return Ran(process.returncode, process.stdout, process.stderr)


@pytest.fixture
def surgery(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """``surgery("inspect", folder)``: the same in this process."""
    monkeypatch.setattr(console, "out", Console(width=160))
    monkeypatch.setattr(console, "err", Console(stderr=True, width=160))

    def run(*arguments: object) -> Ran:
        from surgery.commands.app import app

        capsys.readouterr()
        monkeypatch.setitem(console._settings, "verbose", False)
        code = console.run(app, [str(argument) for argument in arguments])
        return Ran(code, *capsys.readouterr())

    return run


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder that can be inspected and converted, but not run."""
    return bare_source(tmp_path / "model")
