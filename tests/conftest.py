"""Fixtures for all tests: tiny random checkpoints of every family, saved once per run; a fake hub."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.hub import Hub

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shell lets background jobs ignore Ctrl-C, and child processes of a test would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

MakeSource = Callable[..., Path]


def pytest_configure(config: pytest.Config) -> None:
    from tests import recording

    recording.configure(config)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    from tests import recording

    recording.collected(items)
    items.sort(key=lambda item: item.get_closest_marker("early") is None)


@pytest.fixture(scope="session", autouse=True)
def _hf_home(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep all caches of transformers in the temporary folder of the run."""
    home = tmp_path_factory.mktemp("hf")
    os.environ["HF_HOME"] = str(home)
    os.environ["HF_MODULES_CACHE"] = str(home / "modules")


@pytest.fixture(autouse=True)
def _pictures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing its picture takes half of the time of a tiny training run: only tests that look at it have it drawn."""
    if request.node.get_closest_marker("draws") is None and "finetune" in request.module.__dict__:
        monkeypatch.setattr("surgery.reporting.training_log.draw_training_log", _no_picture)


def _no_picture(rows: object, path: Path, controls: object = None) -> None:
    path.write_bytes(b"\x89PNG, not drawn")


@pytest.fixture(autouse=True)
def _quick_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests have the same result on every processor: each dtype counts as one that it computes quickly."""
    monkeypatch.setattr("surgery.loading.precision.computes", lambda dtype: True)


@pytest.fixture(autouse=True)
def _fresh_process(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fresh process takes most of the time of `verify`: only the tests that look at it, and slow ones, start it."""
    if not any(request.node.get_closest_marker(name) for name in ("fresh", "slow")):
        for module in ("verification", "new_model"):
            monkeypatch.setattr(f"surgery.verification.{module}.fresh_checks", lambda *_: [])


@pytest.fixture(scope="session")
def make_source(tmp_path_factory: pytest.TempPathFactory) -> MakeSource:
    """``make_source("qwen3", sharded=True, dtype=torch.bfloat16)``: a folder with a tiny model, saved once."""
    made: dict[str, Path] = {}

    def make(model_type: str, *, sharded: bool = False, dtype: Any = None, **changes: Any) -> Path:
        from tests.families import tiny_model

        key = f"{model_type}-{sharded}-{dtype}-{sorted(changes.items())}"
        if key not in made:
            folder = tmp_path_factory.mktemp("source") / f"tiny-{model_type}"
            model = tiny_model(model_type, **changes)
            if dtype is not None:
                model = model.to(dtype)
            model.save_pretrained(folder, max_shard_size="40KB" if sharded else "1GB")
            made[key] = folder
        return made[key]

    return make


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A fake hub on this machine; all requests of this process to the hub go to it."""
    from huggingface_hub import constants

    from tests.hub import running_hub

    with running_hub() as running:
        running.tokens = {"mine": ("me", ["team"], True), "reader": ("me", ["team"], False)}
        monkeypatch.setattr(constants, "ENDPOINT", running.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", running.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("HF_TOKEN", "mine")
        yield running
