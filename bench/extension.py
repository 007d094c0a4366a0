"""Context extension by two: loss within and beyond the trained length, with RoPE, with SSMax, and with both.

    python -m bench.extension MODEL --text long/*.txt --train-text other/ --work WORK \\
        --out docs/results/data/extension.json

There are four models: the untouched source, with another RoPE, with SSMax, and with both. Each is measured before and
after the same short training: the same rows in the same order from the same seed, with the same adapter. The untouched
source trains only the adapter; its multiplier is 1 at every length. All models are measured on the same tokens, in
whole sequences of the full length. Differences are paired with the untouched model in the same state.

Finished parts are kept in WORK, so the command can be interrupted and repeated.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

import surgery
from bench.harness import arguments, report
from surgery.anatomy import read_anatomy
from surgery.checkpoint import open_checkpoint
from surgery.data import read_documents
from surgery.data.documents import match_files
from surgery.evaluation.loss.sample import Sample
from surgery.evaluation.loss.token_losses import token_losses
from surgery.evaluation.passages import Passage, cut_passages, fingerprint
from surgery.loading import RunOptions, load_model, load_tokenizer

# With this N the multiplier max(1, ln n / ln N) is 1 at every length: the source, as a model that can be trained.
NOWHERE = {"name": "ssmax", "form": "logn", "reference_length": 2**31}
UNTOUCHED = "untouched"


def passages(model: Path, texts: list[str], length: int, documents: int) -> list[Passage]:
    """Sequences of exactly ``length`` tokens, from as many texts as possible."""
    found, _ = cut_passages(read_documents(texts), load_tokenizer(model), length=length)
    names: dict[str, list[Passage]] = {}
    for passage in found:
        if len(passage.tokens) == length:
            names.setdefault(passage.document, []).append(passage)
    whole = [own[turn] for turn in range(len(found)) for own in names.values() if turn < len(own)]
    if len(whole) < documents:
        raise SystemExit(f"the texts give {len(whole)} sequences of {length} tokens, not {documents}")
    return whole[:documents]


def losses(model: Path, name: str, sequences: list[Passage], work: Path, run: RunOptions) -> list[Any]:
    """Loss at every position of every sequence; measured once, then read from ``work``."""
    kept = work / f"{name}-{fingerprint(sequences)[:16]}.npz"
    if not kept.is_file():
        loaded = load_model(model, run)
        found = [token_losses(loaded, torch.tensor([own.tokens], device=loaded.device))[0] for own in sequences]
        partial = kept.with_suffix(".partial.npz")
        np.savez(partial, *[own.double().numpy() for own in found])
        partial.replace(kept)
    with np.load(kept) as arrays:
        return [arrays[key] for key in arrays]


def train(model: Path, output: Path, options: Any, length: int) -> Path:
    """Run the short training, the same for each model; it resumes after an interruption."""
    if not output.is_dir():
        recipe = {
            "model": str(model),
            "output": str(output),
            "data": {"text": options.train_text, "held_out": 0.0, "sequence_length": length},
            "train": {"what": "scale+lora", "rank": options.rank},
            "optimizer": {"scale_lr": 0.005, "lr": options.lr, "betas": [0.9, 0.95]},
            "budget": {"tokens": options.tokens},
            "gradient_checkpointing": True,
            "checkpoints": {"every": 2, "keep": 1},
        }
        began = output.with_name(output.name + ".training") / "run.json"
        surgery.finetune(recipe, resume=began.is_file(), device=options.device, on_progress=step_printer(output.name))
    return output


def step_printer(name: str) -> Any:
    """A callback that prints one line per step."""

    def on_progress(event: dict[str, Any]) -> None:
        if event["event"] == "step":
            print(f"{name}: step {event['step']}, loss {event['loss']:.4f}", flush=True)

    return on_progress


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument(
        "--text", nargs="+", required=True, help="texts to measure on; each at least as long as a sequence"
    )
    parser.add_argument("--train-text", nargs="+", required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--documents", type=int, default=4)
    parser.add_argument("--type", default="yarn")
    parser.add_argument("--form", default="anchored")
    parser.add_argument("--tokens", type=int, default=50_000)
    parser.add_argument("--train-length", type=int, help="1.5 times the trained length by default")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--lr", type=float, default=2e-4)
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    both = {file for text in options.text for file in match_files(text)}
    both &= {file for text in options.train_text for file in match_files(text)}
    if both:
        parser.error(f"{min(both)} is in --text and in --train-text")
    known = read_anatomy(open_checkpoint(options.model)).trained_length
    sequences = passages(options.model, options.text, 2 * known, options.documents)
    rope = {"name": "rope", "type": options.type, "factor": 2}
    ssmax = {"name": "ssmax", "form": options.form}
    plans = {UNTOUCHED: [NOWHERE], "RoPE": [rope], "SSMax": [ssmax], "both": [rope, ssmax]}
    options.work.mkdir(parents=True, exist_ok=True)
    run = RunOptions(dtype="float32", device=options.device)
    measured: dict[str, dict[str, list[Any]]] = {"before": {}, "after": {}}
    for name, operations in plans.items():
        folder = options.work / name
        if not folder.is_dir():
            surgery.convert(options.model, operations, output=folder)
        measured["before"][name] = losses(folder, f"{name}-before", sequences, options.work, run)
        trained = train(folder, options.work / f"{name}-trained", options, options.train_length or known * 3 // 2)
        measured["after"][name] = losses(trained, f"{name}-after", sequences, options.work, run)
    # A prediction that sees n tokens is the one at position n + 1.
    edges = [known // 8, known, known * 3 // 2, 2 * known - 1]
    rows = []
    for state, models in measured.items():
        for first, last in pairwise(edges):
            for name, own in models.items():
                bucket = Sample(own, models[UNTOUCHED]).bucket(first + 1, last, 0.0)
                assert bucket is not None and bucket.difference is not None
                row = {"training": state, "tokens seen": f"{first + 1}-{last}", "model": name}
                apart = bucket.difference
                rows.append(row | {"loss": bucket.loss.value, f"minus {UNTOUCHED}": apart.value})
                rows[-1] |= {"low": apart.low, "high": apart.high}
    report("extension", rows, options.out)


if __name__ == "__main__":
    main()
