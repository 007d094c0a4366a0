"""Keys rejected and change of the loss of a screened checkpoint, on texts outside its calibration.

    surgery convert --to screening MODEL --calibrate TEXTS -o SCREENED
    python -m bench.screening SCREENED --text OTHER_TEXTS --lengths 1024,4096 --out docs/results/data/screening.json

One passage of each length is taken from each text, from token 1,024 on. The same weights run with screening off and
on.
"""

from __future__ import annotations

from typing import Any

from bench.harness import arguments, passages, report


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--text", action="append", required=True)
    parser.add_argument("--lengths", default="1024,4096")
    options = parser.parse_args()
    from surgery.loading import RunOptions, load_model, load_tokenizer

    model = load_model(options.model, RunOptions(dtype="float32"))
    tokenizer = load_tokenizer(options.model)
    rows: list[dict[str, Any]] = []
    for length in map(int, options.lengths.split(",")):
        for name, tokens in passages(tokenizer, options.text, length):
            rows.append(measure(model, name, tokens))
            print(rows[-1], flush=True)
    report("screening", rows, options.out)


def measure(model: Any, name: str, tokens: list[int]) -> dict[str, Any]:
    import torch

    from surgery.evaluation.loss.token_losses import token_losses
    from surgery.loading import operations_off
    from surgery.operations.screening.rejection import counting_rejections

    ids = torch.tensor([tokens], device=model.device)
    with operations_off(model):
        before = float(token_losses(model, ids).double().mean())
    # The count uses every 16th query.
    with counting_rejections(model, torch.arange(0, len(tokens), 16)) as counts:
        after = float(token_losses(model, ids).double().mean())
    return {
        "text": name,
        "tokens": len(tokens),
        "loss": round(before, 4),
        "change": round(after - before, 4),
        "keys rejected": round(counts.total(), 4),
    }


if __name__ == "__main__":
    main()
