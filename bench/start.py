"""Start of each form: the greatest logit difference from the source over all positions, and the loss, on text files.

    python -m bench.start MODEL --text "texts/*.txt" --length 4096 [--out docs/results/data/start.json]

The alternatives are the source model and a constant multiplier of 0.43 ln n for all heads, as other tools fix it.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch

import surgery
from bench.harness import arguments, report
from surgery.data import read_documents
from surgery.loading import RunOptions, load_model, load_tokenizer

CHUNK = 512


def logits(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    """Logits ``(length, vocabulary)``, float32."""
    with torch.no_grad():
        return model(input_ids=tokens, use_cache=False).logits[0].float()


def loss(scores: torch.Tensor, tokens: torch.Tensor) -> float:
    """Mean next-token loss, in chunks of rows."""
    total = 0.0
    for begin in range(0, tokens.shape[1] - 1, CHUNK):
        end = min(begin + CHUNK, tokens.shape[1] - 1)
        total += torch.nn.functional.cross_entropy(
            scores[begin:end], tokens[0, begin + 1 : end + 1], reduction="sum"
        ).item()
    return total / (tokens.shape[1] - 1)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--text", nargs="+", required=True)
    parser.add_argument("--length", type=int, default=4096)
    options = parser.parse_args()
    text = "\n".join(document.text for document in read_documents(options.text))
    tokenizer = load_tokenizer(options.model)
    tokens = torch.tensor([tokenizer(text[: options.length * 8])["input_ids"][: options.length]])
    run = RunOptions(dtype="float32")
    reference = logits(load_model(options.model, run), tokens)
    source_loss = loss(reference, tokens)
    rows: list[dict[str, Any]] = [
        {"start": "source", "tokens": tokens.shape[1], "loss": source_loss, "over source": 0.0, "logit difference": 0.0}
    ]
    conversions: dict[str, dict[str, Any]] = {
        "anchored": {"form": "anchored"},
        "bias": {"form": "bias"},
        "logn": {"form": "logn"},
        "paper, N trained": {"form": "paper"},
        "paper, N = 2048": {"form": "paper", "reference_length": 2048},
        "constant s = 0.43": {"form": "paper", "start": {"scale": 0.43}},
    }
    with tempfile.TemporaryDirectory() as folder:
        for name, choice in conversions.items():
            out = Path(folder) / name.replace(" ", "-")
            surgery.convert(options.model, "ssmax", output=out, mode="link", **choice)
            found = logits(load_model(out, run), tokens)
            measured = loss(found, tokens)
            rows.append(
                {
                    "start": name,
                    "tokens": tokens.shape[1],
                    "loss": measured,
                    "over source": measured - source_loss,
                    "logit difference": (found - reference).abs().max().item(),
                }
            )
            del found
    report("start", rows, options.out)


if __name__ == "__main__":
    main()
