"""Time and memory of Multiscreen beside other code and beside a Llama-like model of as many parameters.

    python -m venv other && other/bin/pip install multiscreen==0.2.0  # optional: public code, apart
    git clone https://github.com/dieOD/multiscreen-pytorch            # optional, too
    python -m bench.multiscreen --cells cells [--package other/bin/python] [--repository multiscreen-pytorch] \
        --out docs/results/data/multiscreen.json

    multiscreen    the model of `surgery new multiscreen`, windows as at the start (2 to 257 tokens)
    half infinite  the same with infinite windows in half of the heads of each layer, as after long training
    dense          the same with the equations as they stand, over a (queries, keys) matrix
    llama          `surgery new softmax` with as many parameters, sdpa
    windowed llama the same with a window of 256 tokens in each layer, in blocks
    package        the class of PyPI's `multiscreen`, with the same sizes
    repository     the class of github.com/dieOD/multiscreen-pytorch, alike

    next          seconds of a forward pass without a cache that gives the next token: latency as the paper measures it
    token         seconds of one more token with a cache of this length
    training      seconds of a forward and backward pass

Each cell runs in a process of its own; finished cells lie in --cells and are not run again. Memory is the high-water
mark of resident memory above that before the cell began. Seconds are those of the processor with one thread
(OMP_NUM_THREADS=1), so that other programs on the machine disturb less.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from bench.harness import report
from bench.multiscreen_models import build

MODELS = ("multiscreen", "half infinite", "dense", "llama", "windowed llama", "package", "repository")
MEASURES = ("next", "token", "training")
TOKENS = 8  # decoded in a cell
PUBLIC = ("package", "repository")
DENSE = ("dense", *PUBLIC)  # memory grows with the square of the length; no cache of their own


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--psi", type=int, default=8)
    parser.add_argument("--vocabulary", type=int, default=8192)
    parser.add_argument("--lengths", default="1024,4096,8192,16384,32768")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--longest-dense", type=int, default=4096, help="greatest length of dense code; training: half")
    parser.add_argument("--package", help="python of an environment that has `multiscreen`")
    parser.add_argument("--repository", help="folder with a clone of dieOD/multiscreen-pytorch")
    parser.add_argument("--cells", type=Path, default=Path("cells"))
    parser.add_argument("--finished", action="store_true", help="report the cells that are finished, measure none")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--cell", help="MODEL/MEASURE/LENGTH: measure in this process and print JSON")
    options = parser.parse_args()
    if options.cell:
        model, measure, length = options.cell.split("/")
        print(json.dumps(cell(model, measure, int(length), options.psi, options.vocabulary)))
        return
    rows = [
        row
        for length in map(int, options.lengths.split(","))
        for measure in MEASURES
        for row in compared(options, measure, length)
    ]
    report("multiscreen", rows, options.out)


def compared(options: Any, measure: str, length: int) -> list[dict[str, Any]]:
    """One row for each model; ratios are to the Llama-like model of the same run."""
    found = {}
    for model in options.models:
        missing = model in PUBLIC and not options.finished and getattr(options, model) is None
        longest = options.longest_dense // (2 if measure == "training" else 1)
        left_out = missing or (model in DENSE and (measure == "token" or length > longest))
        name = f"{model}/{measure}/{length}"
        if not left_out and not (options.finished and not place_of(options, name).is_file()):
            found[model] = stored(options, name)
    rows = []
    for model, values in found.items():
        row: dict[str, Any] = {"measure": measure, "tokens": length, "model": model, **values}
        for key, name in (("seconds", "time"), ("MiB", "memory")):
            base = found.get("llama", {}).get(key)
            row[f"{name}, of llama's"] = values[key] / base if base else None
        rows.append(row)
    return rows


def place_of(options: Any, name: str) -> Path:
    """The file of a cell."""
    words = (str(options.psi), str(options.vocabulary), *name.replace(" ", "-").split("/"))
    return Path(options.cells / ("-".join(words) + ".json"))


def stored(options: Any, name: str) -> dict[str, Any]:
    """A cell from the disk, or measured now in a process of its own."""
    place = place_of(options, name)
    if not place.is_file():
        python = options.package if name.startswith("package") else sys.executable
        command = [python, "-m", "bench.multiscreen", "--cell", name, "--psi", str(options.psi)]
        command += ["--vocabulary", str(options.vocabulary)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        if name.startswith("repository"):
            environment["PYTHONPATH"] = options.repository
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(done.stdout.splitlines()[-1] + "\n", encoding="utf-8")
    found = dict(json.loads(place.read_text(encoding="utf-8")))
    print(name, found, flush=True)
    return found


def cell(name: str, measure: str, length: int, psi: int, vocabulary: int) -> dict[str, Any]:
    """Seconds and memory of one model, measure and length."""
    import torch

    from surgery.peak_memory import PeakMemory

    torch.manual_seed(0)
    model = build(name, psi, vocabulary)
    tokens = torch.randint(vocabulary, (1, length))
    step = {"next": once, "token": decoding, "training": training}[measure](name, model, tokens)
    with PeakMemory(tokens.device) as memory:
        seconds = step()
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return {"parameters": parameters, "seconds": seconds, "MiB": memory.mebibytes}


def once(name: str, model: Any, tokens: Any) -> Callable[[], float]:
    """The next token from a forward pass without a cache."""
    import torch

    arguments = {} if name in PUBLIC else {"use_cache": False, "logits_to_keep": 1}

    @torch.no_grad()
    def step() -> float:
        model(tokens[:, :16], **arguments)
        return seconds(lambda: model(tokens, **arguments))

    return step


def decoding(name: str, model: Any, tokens: Any) -> Callable[[], float]:
    """One more token with a cache of this length."""
    import torch

    from surgery.loading.caches import cache_of, with_cache

    @torch.no_grad()
    def step() -> float:
        cache = None
        for part in tokens.split(1024, dim=1):  # so that the memory is that of the cache
            out = model(part, logits_to_keep=1, **({"use_cache": True} if cache is None else with_cache(cache)))
            cache = cache_of(out)
        return median(seconds(lambda: model(tokens[:, :1], **with_cache(cache))) for _ in range(TOKENS))

    return step


def training(name: str, model: Any, tokens: Any) -> Callable[[], float]:
    """A forward and a backward pass."""
    import torch

    model.train()

    def loss(part: Any) -> Any:
        if name == "package":
            return model(part, return_loss=True)
        if name == "repository":
            logits, _ = model(part)
            return torch.nn.functional.cross_entropy(logits[0, :-1], part[0, 1:])
        return model(part, labels=part, use_cache=False).loss

    def step() -> float:
        loss(tokens[:, :64]).backward()
        return seconds(lambda: loss(tokens).backward())

    return step


def seconds(work: Callable[[], Any]) -> float:
    """Seconds of the processor."""
    begin = time.process_time()
    work()
    return time.process_time() - begin


if __name__ == "__main__":
    main()
