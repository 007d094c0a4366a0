"""Recovery from the start of `paper` by several kinds of training, on the same tokens, with controls.

    python -m bench.recovery MODEL --text TEXTS --tokens 60000 [--ways scale scale+lora] [--out FILE.json]

The alternatives are the source, the same training of the untouched model, and one learned constant per head.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import surgery
from bench.harness import arguments, report

SHARE_OF_MATCHING = 0.15
NEXT_TOKEN, DISTILL, MATCH = ({"objective": {"name": name}} for name in ("next_token", "distill", "match"))
SCALE, LORA = {"train": {"what": "scale"}}, {"train": {"what": "scale+lora", "rank": 16}}
SHORT = {"data": {"sequence_length": 128}, "batch": {"sequences": 8}}
FULL = {"train": {"what": "full"}}
# Each kind of training: its stages, each with its share of the tokens.
WAYS: dict[str, list[tuple[dict[str, Any], float]]] = {
    "scale": [({**SCALE, **NEXT_TOKEN}, 1.0)],
    "scale, matched first": [
        ({**SCALE, **MATCH}, SHARE_OF_MATCHING),
        ({**SCALE, **NEXT_TOKEN}, 1 - SHARE_OF_MATCHING),
    ],
    "scale+lora": [({**LORA, **NEXT_TOKEN}, 1.0)],
    "scale+lora, matched first, distilled": [
        ({**SCALE, **MATCH}, SHARE_OF_MATCHING),
        ({**LORA, **DISTILL}, 1 - SHARE_OF_MATCHING),
    ],
    "full, matched first, distilled": [
        ({**SCALE, **MATCH}, SHARE_OF_MATCHING),
        ({**FULL, **DISTILL}, 1 - SHARE_OF_MATCHING),
    ],
    # One step on a row of 4,096 takes as many tokens as four on rows of 1,024; the last steps use the measured length.
    "full, matched first, distilled on 1,024 then on whole rows": [
        ({**SCALE, **MATCH}, SHARE_OF_MATCHING),
        ({**FULL, **DISTILL, "data": {"sequence_length": 1024}}, 0.45),
        ({**FULL, **DISTILL}, 0.55 - SHARE_OF_MATCHING),
    ],
    # Short rows have more of the first positions, which s ln n flattens most. They recover less.
    "scale+lora, matched first, distilled short then long": [
        ({**SCALE, **MATCH}, SHARE_OF_MATCHING),
        ({**LORA, **DISTILL, **SHORT}, 0.4),
        ({**LORA, **DISTILL}, 0.6 - SHARE_OF_MATCHING),
    ],
}
# A control with parameters to train: constants for scales, the same adapter on the source for an adapter.
CONTROLS = {
    "scale": "temperature",
    "scale+lora": "untouched",
}


def recipe(way: str, model: Path, output: Path, options: Any) -> dict[str, Any]:
    """The recipe of one kind of training."""
    stages = [
        {**what, "name": f"{index}-{what['objective']['name']}", "budget": {"tokens": round(share * options.tokens)}}
        for index, (what, share) in enumerate(WAYS[way])
    ]
    trained = WAYS[way][-1][0]["train"]
    optimizer = {"scale_lr": options.scale_lr, "warmup": 0.05, "betas": [0.9, 0.95]}
    held_out = [str(path) for path in options.held_out_files or []] or options.held_out
    return {
        "model": str(model),
        "output": str(output),
        "data": {
            "text": [str(path) for path in options.text],
            "held_out": held_out,
            "sequence_length": options.length,
        },
        "train": trained,
        "optimizer": {**optimizer, **({} if trained == {"what": "scale"} else {"lr": options.lr})},
        "stages": stages,
        "evaluation": {"sequences": options.sequences},
        "checkpoints": {"every": 100_000},
        "seed": options.seed,
        **({"control": CONTROLS[way]} if way in CONTROLS and not options.no_controls else {}),
    }


def rows_of(way: str, result: Any, tokens: int) -> list[dict[str, Any]]:
    """One row for each model of a run."""
    compared = result.comparison
    assert compared is not None, "nothing was held out"
    rows = []
    for model in compared.models:
        if model.loss is None:
            continue
        against = compared.difference(model.name, "source")
        over = against.difference if against is not None else None
        rows.append(
            {
                "way": way,
                "model": model.name,
                "learned numbers": model.learned,
                "tokens": tokens if model.name in ("recovered", "untouched", "temperature") else 0,
                "loss": model.loss.value,
                "over source": 0.0 if over is None else over.value,
                "low": 0.0 if over is None else over.low,
                "high": 0.0 if over is None else over.high,
                "held-out tokens": compared.tokens,
                "documents": compared.documents,
            }
        )
    return rows


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--text", nargs="+", required=True)
    parser.add_argument("--tokens", type=int, default=60_000)
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--held-out", type=float, default=0.2)
    parser.add_argument("--held-out-files", nargs="+", help="files of the texts to hold out, instead of a share")
    parser.add_argument("--sequences", type=int, default=16)
    parser.add_argument("--scale-lr", type=float, default=0.02)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-controls", action="store_true")
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        start = surgery.convert(options.model, "ssmax", form="paper", output=Path(folder) / "start", mode="link").output
        for index, way in enumerate(options.ways):
            result = surgery.finetune(
                recipe(way, start, Path(folder) / f"trained-{index}", options), on_progress=print_step
            )
            rows += rows_of(way, result, options.tokens)
            report("recovery", rows, options.out)


def print_step(event: dict[str, Any]) -> None:
    """Print each step."""
    if event["event"] == "step":
        print({name: event[name] for name in ("step", "loss", "seconds") if name in event}, flush=True)


if __name__ == "__main__":
    main()
