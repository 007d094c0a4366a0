"""The wheel, installed in an environment of its own outside the checkout, has everything."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.environments import bare_environment, run

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment with the wheel."""
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)],
        check=True,
        capture_output=True,
    )
    (wheel,) = folder.glob("model_surgery-*.whl")
    python = bare_environment(folder / "environment")
    install = ["-m", "pip", "--python", str(python), "install", "--no-deps", "--no-index", str(wheel)]
    subprocess.run([sys.executable, *install], check=True, capture_output=True)
    return python


def test_the_package_is_the_wheels(python: Path, tmp_path: Path) -> None:
    where = run(python, tmp_path, "-c", "import surgery; print(surgery.__file__)").strip()
    assert Path(where).is_relative_to(python.parents[1])


def test_recipes_inspect_and_convert(python: Path, tmp_path: Path, make_source: Any) -> None:
    recipes = run(python, tmp_path, "-m", "surgery", "recipes", "list")
    assert "ssmax-scale" in recipes and "ssmax-lora" in recipes
    assert "retrieval" in run(python, tmp_path, "-m", "surgery", "evaluate", "--list-suites")
    model = str(make_source("llama"))
    assert "llama" in run(python, tmp_path, "-m", "surgery", "inspect", model)
    run(python, tmp_path, "-m", "surgery", "convert", "--to", "ssmax", model, "-o", "out")
    assert (tmp_path / "out" / "modeling_surgery.py").is_file()


def test_the_console_script(python: Path, tmp_path: Path) -> None:
    script = python.with_name("surgery")
    done = subprocess.run([str(script), "--version"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("surgery ")
