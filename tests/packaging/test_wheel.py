"""The wheel, installed in an environment of its own outside the checkout, has everything."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel; the dependencies come from the development environment, the package does not."""
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)],
        check=True,
        capture_output=True,
    )
    (wheel,) = folder.glob("model_surgery-*.whl")
    environment = folder / "environment"
    venv.create(environment, with_pip=False)
    python = environment / ("Scripts" if os.name == "nt" else "bin") / "python"
    subprocess.run(
        [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--no-index", str(wheel)],
        check=True,
        capture_output=True,
    )
    (site,) = (
        environment.glob("lib/python*/site-packages") if os.name != "nt" else environment.glob("Lib/site-packages")
    )
    # A path in a .pth file is searched, but .pth files in it are not read: the editable install stays out.
    (site / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n", encoding="utf-8")
    return environment


def run(installed: Path, folder: Path, *arguments: str) -> str:
    python = installed / ("Scripts" if os.name == "nt" else "bin") / "python"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [str(python), *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_package_is_the_wheels(installed: Path, tmp_path: Path) -> None:
    where = run(installed, tmp_path, "-c", "import surgery; print(surgery.__file__)").strip()
    assert Path(where).is_relative_to(installed)


def test_recipes_inspect_and_convert(installed: Path, tmp_path: Path, make_source: object) -> None:
    recipes = run(installed, tmp_path, "-m", "surgery", "recipes", "list")
    assert "ssmax-scale" in recipes and "ssmax-lora" in recipes
    model = str(make_source("llama"))  # type: ignore[operator]
    assert "llama" in run(installed, tmp_path, "-m", "surgery", "inspect", model)
    run(installed, tmp_path, "-m", "surgery", "convert", "--to", "ssmax", model, "-o", "out")
    assert (tmp_path / "out" / "modeling_surgery.py").is_file()


def test_the_console_script(installed: Path, tmp_path: Path) -> None:
    script = installed / ("Scripts" if os.name == "nt" else "bin") / "surgery"
    done = subprocess.run([str(script), "--version"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("surgery ")
