"""What a choice of windows costs on passages that it was not made on, by how much pairs of heads count and by queries.

    python -m bench.choices MODEL --text 'TEXTS/*.txt' --kept effects.npz --out docs/results/data/choices.json

Passages of 4,096 tokens are observed once and kept in --kept. Half of them give the choice, the other half estimate its
loss, with all products of heads; then the other way round, for several divisions. All choices save the same memory.
``--by layer`` chooses one window for all key-value heads of a layer, and one for each, instead.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from bench.harness import arguments, report

TOGETHER = (0.0, 0.25, 0.5, 0.75, 1.0)
QUERIES = (48, 96, 192)
SHARES = (0.5, 0.35, 0.27)
LENGTH = 4096


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--text", nargs="+", default=[], help="to observe; not needed where --kept exists")
    parser.add_argument("--by", default="group", choices=("group", "layer"))
    parser.add_argument("--kept", type=Path, required=True)
    parser.add_argument("--passages", type=int, default=8)
    parser.add_argument("--divisions", type=int, default=6)
    options = parser.parse_args()
    if not options.kept.is_file():
        observe(options)
    with np.load(options.kept) as kept:
        found = dict(kept)
    ends = np.cumsum(found["rows"])
    passages = np.split(found["changes"], ends[:-1])
    generator = np.random.default_rng(0)
    divisions = [generator.permutation(len(passages)) for _ in range(options.divisions)]
    cells = [(together, max(QUERIES), 1) for together in TOGETHER] + [(0.5, count, 1) for count in QUERIES[:-1]]
    if options.by == "layer":
        from surgery.anatomy import read_anatomy
        from surgery.checkpoint import open_checkpoint

        layers = len(read_anatomy(open_checkpoint(options.model)).layers)
        cells = [(0.5, max(QUERIES), number) for number in (1, len(found["saved"]) // layers)]
    rows = [
        {"cache that stays": share, "together": together, "queries": queries, "groups with one window": number}
        | cell(passages, found["saved"], divisions, share, together, queries, number)
        for share in SHARES
        for together, queries, number in cells
    ]
    report("choices", rows, options.out)


def cell(
    passages: list[Any], saved: Any, divisions: list[Any], share: float, together: float, queries: int, number: int
) -> dict[str, Any]:
    """The estimated loss on the passages of the choice and on the others: means, and the latter's standard error.

    ``number``: of the key-value groups beside each other that have one window.
    """
    half = len(passages) // 2
    saved = saved.reshape(-1, number, saved.shape[1]).sum(1)  # ``number`` groups that lie beside each other share one
    passages = [part.reshape(len(part), -1, number, part.shape[-1]).sum(2) for part in passages]
    inside, outside = [], []
    for order in divisions:
        for own, other in ((order[:half], order[half:]), (order[half:], order[:half])):
            generator = np.random.default_rng(int(own[0]))
            chosen_on = joined(
                [passages[one][generator.permutation(len(passages[one]))[:queries]] for one in own], saved
            )
            windows = at_share(chosen_on, share, together)
            inside.append(loss(chosen_on, windows))
            outside.append(loss(joined([passages[one] for one in other], saved), windows))
    error = float(np.std(outside) / math.sqrt(len(outside)))
    return {"loss, same passages": float(np.mean(inside)), "loss, others": float(np.mean(outside)), "error": error}


def joined(parts: list[Any], saved: Any) -> Any:
    """Effects of several passages; the changes of a passage are those of a mean over its queries."""
    from surgery.operations.screening.calibration.window_choice import GroupEffects

    changes = np.concatenate([part / math.sqrt(len(part) * len(parts)) for part in parts])
    groups, windows = saved.shape
    return GroupEffects(changes, saved, np.zeros((groups, 1, 1, windows)), (1,) * groups)


def at_share(effects: Any, share: float, together: float) -> Any:
    """The windows that leave this share of the cache, or a little less, as indices."""
    low, high = 1e-9, 1e3
    while high / low > 1.01:
        middle = math.sqrt(low * high)
        if 1 - effects.choose(middle, together).saved > share:
            low = middle
        else:
            high = middle
    return effects.choose(high, together).window[:, 0]


def loss(effects: Any, windows: Any) -> float:
    """Half the mean square of the summed changes of all groups."""
    total = effects.changes[:, np.arange(len(windows)), windows].sum(1, dtype=np.float64)
    return float(total @ total) / 2


def observe(options: Any) -> None:
    """Observe passages and keep the changes of each sampled query, ``(queries, groups, windows)``."""
    from surgery.anatomy import read_anatomy
    from surgery.checkpoint import open_checkpoint
    from surgery.data import read_documents
    from surgery.evaluation.held_out_passages import divide
    from surgery.loading import RunOptions, load_tokenizer
    from surgery.loading.operated import open_model
    from surgery.operations.screening.calibration.calibration import resolved_options
    from surgery.operations.screening.calibration.calibrator import Calibrator
    from surgery.operations.screening.calibration_settings import CalibrationSettings

    anatomy = read_anatomy(open_checkpoint(options.model))
    screening = resolved_options({}, anatomy)
    settings = CalibrationSettings(lengths=(LENGTH,), observe=options.passages, rows=max(QUERIES))
    documents = read_documents(options.text)
    passages = divide(documents, load_tokenizer(options.model), (LENGTH,), observe=options.passages, hold_out=1)
    model = open_model(options.model, anatomy, [screening.resolved()], RunOptions(dtype="float32"))
    rows: list[int] = []
    parts = []
    for passage in passages.observed:
        effects, _ = Calibrator(model, screening, anatomy, settings, None).observe([passage])
        parts.append(effects.changes * math.sqrt(len(effects.changes)))  # the shares of the queries sum to one
        rows.append(len(parts[-1]))
        print(passage.document, flush=True)
    options.kept.parent.mkdir(parents=True, exist_ok=True)
    np.savez(options.kept, changes=np.concatenate(parts), saved=effects.saved, rows=rows)


if __name__ == "__main__":
    main()
