"""Python environments with the dependencies of surgery, without surgery."""

from __future__ import annotations

import os
import subprocess
import sysconfig
import venv
from pathlib import Path

SCRIPTS = "Scripts" if os.name == "nt" else "bin"


def bare_environment(folder: Path) -> Path:
    """Create an environment in ``folder`` with all packages except ``surgery``; returns its Python."""
    venv.create(folder, with_pip=False)
    (site,) = folder.glob("Lib/site-packages" if os.name == "nt" else "lib/python*/site-packages")
    # Python searches a path in a .pth file, but does not read .pth files in it, so the editable install is not found.
    (site / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n", encoding="utf-8")
    return folder / SCRIPTS / "python"


def run(python: Path, folder: Path, *arguments: str) -> str:
    """Run that Python in ``folder``, offline, without PYTHONPATH and with stdin closed; returns its output."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [str(python), *arguments],
        cwd=folder,
        env={**environment, "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hf")},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
