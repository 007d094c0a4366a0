"""Python environments of their own, with this project's dependencies but not this package."""

from __future__ import annotations

import os
import subprocess
import sysconfig
import venv
from pathlib import Path

SCRIPTS = "Scripts" if os.name == "nt" else "bin"


def bare_environment(folder: Path) -> Path:
    """Make an environment in ``folder`` where everything is installed but ``surgery``; returns its Python."""
    venv.create(folder, with_pip=False)
    (site,) = folder.glob("Lib/site-packages" if os.name == "nt" else "lib/python*/site-packages")
    # A path in a .pth file is searched, but .pth files in it are not read: the editable install stays out.
    (site / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n", encoding="utf-8")
    return folder / SCRIPTS / "python"


def run(python: Path, folder: Path, *arguments: str) -> str:
    """Run that Python in ``folder``, offline, without a PYTHONPATH and with stdin closed; returns what it printed."""
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
