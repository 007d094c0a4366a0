"""`generate` of a screened model against its source: time to the first token, time of a token, memory, cache.

    surgery convert --to screening MODEL --calibration sweep/calibration-0.002.json -o SCREENED
    python -m bench.generation SCREENED --against MODEL --text TEXT --lengths 4096,8192,16384,32768 \\
        --dtypes float32,bfloat16 --cells cells --out docs/results/data/generation.json

Each cell runs in a process of its own, source and screened in turn. Finished cells lie in --cells and are not run
again. The time of attention is that of the attention modules in the prefill, without their projections. Memory is the
high-water mark of resident memory above that after the weights were loaded and used once. `--chunk` prefills that
many tokens at a time (transformers' `prefill_chunk_size`). `--rows 2` adds a row of half the length, padded on the
left. On a machine that runs other programs, `--clock processor` with OMP_NUM_THREADS=1 counts processor seconds.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from bench.harness import arguments, environment, report

CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}
WARM = 16  # tokens of a first forward pass, which touches all weights


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--against", type=Path, help="the source; not needed for a single cell")
    parser.add_argument("--text", required=True)
    parser.add_argument("--lengths", default="4096,8192,16384")
    parser.add_argument("--dtypes", default="float32")
    parser.add_argument("--rows", type=int, default=1)
    parser.add_argument("--chunk", type=int, default=0)
    parser.add_argument("--new-tokens", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--clock", choices=tuple(CLOCKS), default="wall")
    parser.add_argument("--cells", type=Path, default=Path("cells"))
    parser.add_argument("--cell", action="store_true", help="measure one model in this process and print JSON")
    options = parser.parse_args()
    if options.cell:
        print(json.dumps(cell(options)))
        return
    if options.against is None:
        parser.error("pass --against SOURCE")
    rows = [
        compared(options, int(length), dtype)
        for length in options.lengths.split(",")
        for dtype in options.dtypes.split(",")
    ]
    report("generation", rows, options.out)


def compared(options: Any, length: int, dtype: str) -> dict[str, Any]:
    """Source and screened model at one length, from the cells on disk or measured now, in turn."""
    found: dict[str, list[dict[str, Any]]] = {"source": [], "screened": []}
    for repeat in range(options.repeats):
        for name, model in (("source", options.against), ("screened", options.model)):
            place = (
                options.cells / f"{name}-{length}-{dtype}-{options.rows}-{options.chunk}-{options.clock}-{repeat}.json"
            )
            given = {"model": str(model), "text": options.text, "new tokens": options.new_tokens}
            if not place.is_file():
                place.parent.mkdir(parents=True, exist_ok=True)
                measured = {"settings": given} | run(options, model, length, dtype)
                place.write_text(json.dumps(measured) + "\n", encoding="utf-8")
            kept = json.loads(place.read_text(encoding="utf-8"))
            if kept.get("settings") != given:
                raise SystemExit(f"{place} was measured with other settings: choose another --cells")
            found[name].append(kept)
            print(name, found[name][-1], flush=True)
    row: dict[str, Any] = {"tokens": length, "dtype": dtype, "rows": options.rows, "chunk": options.chunk}
    row["clock"] = options.clock
    for measure in ("first token, s", "attention, s", "token, s", "peak, MiB", "cache, MiB"):
        if any(cell[measure] is None for cells in found.values() for cell in cells):
            continue  # the peak, where the system does not report it
        values = {name: median(cell[measure] for cell in cells) for name, cells in found.items()}
        row |= {f"{measure}, source": values["source"], f"{measure}, ratio": values["screened"] / values["source"]}
    return row


def run(options: Any, model: Path, length: int, dtype: str) -> dict[str, Any]:
    """One cell, measured in a process of its own."""
    command = [sys.executable, "-m", "bench.generation", str(model), "--cell", "--text", options.text]
    command += ["--lengths", str(length), "--dtypes", dtype, "--rows", str(options.rows)]
    command += ["--chunk", str(options.chunk), "--new-tokens", str(options.new_tokens), "--clock", options.clock]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def cell(options: Any) -> dict[str, Any]:
    """Measures of one model, dtype and length."""
    import torch

    from surgery.data import read_documents
    from surgery.loading import RunOptions, load_model, load_tokenizer
    from surgery.loading.caches import cache_of
    from surgery.peak_memory import PeakMemory

    length = int(options.lengths)
    model: Any = load_model(options.model, RunOptions(dtype=options.dtypes))
    model.config.windowed_cache = True  # a model without windows ignores it
    (document,) = read_documents([options.text])
    tokens = load_tokenizer(options.model)(document.text, add_special_tokens=False, verbose=False)["input_ids"]
    if len(tokens) < length:
        raise SystemExit(f"{options.text} has {len(tokens)} tokens; {length} are needed")
    ids, mask = unequal(torch.tensor(tokens[:length]), options.rows)
    clock = Clock(model, CLOCKS[options.clock])
    given: dict[str, Any] = {"prefill_chunk_size": options.chunk} if options.chunk else {}
    with torch.no_grad():
        model(input_ids=ids[:1, -WARM:], use_cache=False)
        clock.attention = 0.0
        with PeakMemory(model.device) as memory:
            start = clock.now()
            out = model.generate(
                input_ids=ids,
                attention_mask=mask,
                do_sample=False,
                min_new_tokens=options.new_tokens,
                max_new_tokens=options.new_tokens,
                return_dict_in_generate=True,
                stopping_criteria=[clock],
                **given,
            )
    first, *others = clock.moments
    return {
        "first token, s": first - start,
        "attention, s": clock.attention_of_prefill,
        "token, s": median(after - earlier for earlier, after in zip([first, *others], others, strict=False)),
        "peak, MiB": memory.mebibytes,
        "cache, MiB": cache_bytes(cache_of(out)) / 2**20,
        "environment": environment(),
    }


def unequal(tokens: Any, rows: int) -> tuple[Any, Any]:
    """``rows`` prompts and their mask, ``(rows, tokens)``; from the second on, half as many tokens and left padding."""
    import torch

    length = len(tokens)
    ids, mask = tokens.repeat(rows, 1), torch.ones(rows, length, dtype=torch.long)
    mask[1:, : length // 2] = 0
    return ids, mask


def cache_bytes(cache: Any) -> int:
    """Memory of all keys and values that a cache holds."""
    own = getattr(cache, "nbytes", None)
    return own() if own else sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)


class Clock:
    """Stopping criterion that stops nothing: notes when each token is there, and the time of attention until then."""

    def __init__(self, model: Any, now: Callable[[], float]) -> None:
        """Hooks on the attention modules of ``model`` and their projections sum up the time of attention by ``now``."""
        import torch

        self.now = now
        self.moments: list[float] = []
        self.attention = self.attention_of_prefill = 0.0
        for module in model.modules():
            if type(module).__name__.endswith("Attention"):
                self._watch(module, 1)
                for child in module.children():
                    if isinstance(child, torch.nn.Linear):
                        self._watch(child, -1)

    def _watch(self, module: Any, sign: int) -> None:
        started: list[float] = []
        module.register_forward_pre_hook(lambda *_: started.append(self.now()))

        def stop(*_: Any) -> None:
            self.attention += sign * (self.now() - started.pop())

        module.register_forward_hook(stop)

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        """False for each row; called after every token."""
        self.moments.append(self.now())
        if len(self.moments) == 1:
            self.attention_of_prefill = self.attention
        return input_ids.new_zeros(len(input_ids), dtype=bool)


if __name__ == "__main__":
    main()
