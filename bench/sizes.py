"""Conversions by size: linked, from 0.2 GB to 20 GB; copied, against cp; both against loading and saving the model.

python -m bench.sizes [--place FOLDER] [--repeats 5] [--mergekit PYTHON] [--out docs/results/data/sizes.json]

Only the size of the models matters. Each has eight shards: sparse files for the linked conversions, so that 20 GB take
no disk space; random bytes for the copies. A copy is timed twice: as `convert` makes it, and with `--copy`, which also
computes the SHA-256 of every shard. Every copy is on the disk at its end: `cp` is followed by `sync`, and a conversion
syncs by itself. Before each turn the disk is idle.

Wall and processor time are those of whole processes; "beyond" is the difference from the alternative in the same turn.
On a busy machine, processor time is the steadier of the two, and "beyond, best s" (the difference of the fastest runs)
is the nearest to the time on a quiet machine. Python has its bytecode, as after an installation.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.harness import report

SHARDS, LAYERS, VOCABULARY = 8, 24, 32_000
WIDTHS = {"0.2 GB": 448, "2 GB": 1536, "20 GB": 5056}
BLOCK = 1 << 24


def shapes(width: int) -> dict[str, list[int]]:
    """Shapes of the tensors of a llama with this width."""
    found = {"model.embed_tokens.weight": [VOCABULARY, width], "model.norm.weight": [width]}
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}."
        found |= {f"{prefix}self_attn.{name}_proj.weight": [width, width] for name in "qkvo"}
        found |= {f"{prefix}mlp.{name}_proj.weight": [4 * width, width] for name in ("gate", "up")}
        found |= {f"{prefix}mlp.down_proj.weight": [width, 4 * width]}
        found |= {f"{prefix}{name}_layernorm.weight": [width] for name in ("input", "post_attention")}
    return {**found, "lm_head.weight": [VOCABULARY, width]}


def make(folder: Path, width: int, *, sparse: bool) -> int:
    """Write a checkpoint of eight shards; returns its size in bytes."""
    folder.mkdir(parents=True)
    config = {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": width, "vocab_size": VOCABULARY,
        "intermediate_size": 4 * width, "num_hidden_layers": LAYERS, "num_attention_heads": width // 64,
        "num_key_value_heads": width // 64, "max_position_embeddings": 4096, "torch_dtype": "bfloat16",
        "tie_word_embeddings": False,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    tensors = list(shapes(width).items())
    weight_map: dict[str, str] = {}
    total = 0
    for number in range(SHARDS):
        name = f"model-{number + 1:05}-of-{SHARDS:05}.safetensors"
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        begin = 0
        for tensor, shape in tensors[number * len(tensors) // SHARDS : (number + 1) * len(tensors) // SHARDS]:
            size = 2
            for dimension in shape:
                size *= dimension
            header[tensor] = {"dtype": "BF16", "shape": shape, "data_offsets": [begin, begin + size]}
            weight_map[tensor] = name
            begin += size
        text = json.dumps(header).encode()
        with (folder / name).open("wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            if sparse:
                file.truncate(8 + len(text) + begin)
            else:
                block = os.urandom(BLOCK)
                for at in range(0, begin, BLOCK):
                    file.write(block[: min(BLOCK, begin - at)])
        total += begin
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return total


def measured(command: list[str], bytecode: Path) -> dict[str, float]:
    """Wall seconds, processor seconds and peak megabytes of one process and its children."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    code = (
        "import json, resource, subprocess, sys, time; began = time.perf_counter(); "
        "done = subprocess.run(sys.argv[1:], capture_output=True); took = time.perf_counter() - began; "
        "use = resource.getrusage(resource.RUSAGE_CHILDREN); "
        "sys.exit(done.stderr.decode()) if done.returncode else "
        "print(json.dumps([took, use.ru_utime + use.ru_stime, use.ru_maxrss / 1024]))"
    )
    if hasattr(os, "sync"):
        os.sync()
    said = subprocess.run(
        [sys.executable, "-c", code, *command],
        check=False,
        capture_output=True,
        text=True,
        env={**environment, "PYTHONPYCACHEPREFIX": str(bytecode), "OMP_NUM_THREADS": "1"},
    )
    if said.returncode != 0:
        raise SystemExit(said.stderr)
    seconds, processor, peak = json.loads(said.stdout)
    return {"seconds": seconds, "processor": processor, "peak MB": peak}


def turns(ways: dict[str, Callable[[], dict[str, float]]], repeats: int) -> dict[str, list[dict[str, float]]]:
    """Run all calls in turn, so that noise affects them equally; the first turn is a warm-up."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
    for turn in range(repeats + 1):
        for name in list(ways) if turn % 2 else list(reversed(ways)):
            result = ways[name]()
            if turn:
                found[name].append(result)
    return found


def row(name: str, runs: list[dict[str, float]], against: str, other: list[dict[str, float]]) -> dict[str, Any]:
    """Medians, and medians of the ratios and differences within each turn."""
    pairs = list(zip(runs, other, strict=True))
    middle = {key: statistics.median(run[key] for run in runs) for key in ("seconds", "processor", "peak MB")}
    return {
        "what": name,
        **middle,
        "against": against,
        "ratio": statistics.median(a["seconds"] / b["seconds"] for a, b in pairs),
        "best ratio": min(run["seconds"] for run in runs) / min(run["seconds"] for run in other),
        "beyond, s": statistics.median(a["seconds"] - b["seconds"] for a, b in pairs),
        "beyond, best s": min(run["seconds"] for run in runs) - min(run["seconds"] for run in other),
        "beyond, processor s": statistics.median(a["processor"] - b["processor"] for a, b in pairs),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--place", type=Path, help="folder for the models; the copies need 10 GB")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--mergekit", help="a Python that has mergekit installed")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    load = os.getloadavg()[0]
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(dir=options.place) as scratch:
        place = Path(scratch)
        bytecode = place / "bytecode"
        for name, width in WIDTHS.items():
            make(place / name.replace(" ", ""), width, sparse=True)
        make(place / "real", WIDTHS["2 GB"], sparse=False)

        def convert(source: str, *how: str) -> Callable[[], dict[str, float]]:
            def call() -> dict[str, float]:
                out = place / "out"
                shutil.rmtree(out, ignore_errors=True)
                surgery = [sys.executable, "-m", "surgery", "convert", "--to", "ssmax", str(place / source)]
                return measured([*surgery, "-o", str(out), *how, "--quiet"], bytecode)

            return call

        def shell(line: str) -> Callable[[], dict[str, float]]:
            def call() -> dict[str, float]:
                shutil.rmtree(place / "out", ignore_errors=True)
                return measured(["sh", "-c", line, "sh", str(place / "real"), str(place / "out")], bytecode)

            return call

        linked: dict[str, Callable[[], dict[str, float]]] = {
            "python -c pass": lambda: measured([sys.executable, "-c", "pass"], bytecode),
            **{f"linked, {name}": convert(name.replace(" ", ""), "--link") for name in WIDTHS},
        }
        found = turns(linked, options.repeats)
        rows += [row(name, runs, "python -c pass", found["python -c pass"]) for name, runs in found.items()]
        load_and_save = (
            "import sys; from transformers import AutoModelForCausalLM as A; "
            "A.from_pretrained(sys.argv[1], dtype='auto').save_pretrained(sys.argv[2], max_shard_size='300MB')"
        )
        copied: dict[str, Callable[[], dict[str, float]]] = {
            "cp -r; sync -f": shell('cp -r "$1" "$2" && sync -f "$2"'),
            "copied, 2 GB": convert("real"),
            "copied with SHA-256, 2 GB": convert("real", "--copy"),
            "linked, 2 GB of real bytes": convert("real", "--link"),
            "load and save, 2 GB": shell(f'exec "{sys.executable}" -c "{load_and_save}" "$1" "$2"'),
        }
        if options.mergekit:
            recipe = place / "passthrough.yaml"
            recipe.write_text(f"merge_method: passthrough\ndtype: bfloat16\nmodels: [{{model: {place / 'real'}}}]\n")
            copied["mergekit passthrough, 2 GB"] = shell(
                f'exec "{options.mergekit}" -m mergekit.scripts.run_yaml "{recipe}" "$2"'
            )
        found = turns(copied, options.repeats)
        rows += [row(name, runs, "cp -r; sync -f", found["cp -r; sync -f"]) for name, runs in found.items()]
    for one in rows:
        one["load before, after"] = f"{load:.1f}, {os.getloadavg()[0]:.1f}"
    report("sizes", rows, options.out)


if __name__ == "__main__":
    main()
