"""Loss, pass keys and many facts at an equal share of the cache: screened models and the presses of kvpress.

    python -m venv .cache/kvpress && .cache/kvpress/bin/pip install kvpress==0.5.5     wants an older transformers

    python -m bench.kvpress make SOURCE --texts TEXTS --haystacks TEXTS --work WORK
    python -m bench.kvpress ours SCREENED --label 'screened, 50%' --work WORK
    .cache/kvpress/bin/python -m bench.kvpress presses SOURCE --shares 0.5,0.3 --work WORK
    python -m bench.kvpress table --work WORK --out docs/results/data/kvpress.json

Each prompt has 3,584 tokens and runs once; then what is left of its cache is continued: by the next 512 tokens of the
text, whose loss is measured, or by questions. A press sees the whole prompt with the source's own attention and drops
keys at its end; it does not know the continuation, nor the question. A screened model has its windows in the prompt
too. Finished cases lie in WORK and are not run again; `--limit 8` runs the first eight. `presses --check` compares one
case with each press run alone. Without `presses`, `ours SOURCE --label none` gives the whole cache to compare with.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from bench.kvpress.case import read_cases, write_cases


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=("make", "ours", "presses", "table"))
    parser.add_argument("model", type=Path, nargs="?", help="the source, or a screened model; none for `table`")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--texts", nargs="+", default=[], help="files, folders and globs whose loss is measured")
    parser.add_argument("--haystacks", nargs="+", default=[], help="texts in which facts are hidden")
    parser.add_argument("--count", type=int, default=8, help="pass keys, and texts with facts")
    parser.add_argument("--label", default="screened", help="name of a model in the table")
    parser.add_argument("--shares", default="0.5,0.3", help="shares of the cache that presses keep")
    parser.add_argument("--limit", type=int, help="number of cases; by default all")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.model is None and options.step != "table":
        parser.error("pass the folder of a model")
    place = options.work / "cases.json"
    if options.step == "make":
        from bench.kvpress.make import cases
        from surgery.loading import load_tokenizer

        made = cases(load_tokenizer(options.model), options.texts, options.haystacks, options.count)
        write_cases(made, place)
        print(f"{len(made)} cases in {place}")
    elif options.step == "ours":
        from bench.kvpress import ours

        ours.run(options.model, options.label, read_cases(place)[: options.limit], options.work)
    elif options.step == "presses":
        from bench.kvpress import presses

        shares = [float(share) for share in options.shares.split(",")]
        presses.run(options.model, shares, read_cases(place)[: options.limit], options.work, options.check)
    else:
        from bench.harness import report
        from bench.kvpress.table import rows

        report("kvpress", rows(read_cases(place), options.work), options.out)


if __name__ == "__main__":
    main()
