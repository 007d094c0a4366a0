"""Retrieval at length: how much is gained for which loss, and how much of it is due to ln n.

    python -m bench.recall MODEL --text held-out/ --kinds kernel/ python/ source/ --train-text texts/ --work WORK \\
        --out docs/results/data/recall.json

The models: the source; every query times 1.2, nothing learned; and SSMax calibrated on haystacks, for each seed in
each of several ways: `constant` (a temperature and a gain per head, no ln n), `bias` (b + s ln n, and a gain),
`temperature` (no gain, no ln n), `gain` (nothing else), `anchored` (1 + s (ln n - ln 256), and a gain), all in layers
with full attention; `everywhere` (as `constant`, in layers with a sliding window too, as a calibration does by
default). A seed has one set of haystacks.
All models are asked for the same facts in the same texts, with templates, names and words that no calibration uses, and
predict the same texts of several kinds. The measure `words` is a task of lm-evaluation-harness on those texts.
Differences are paired, and their intervals resample whole haystacks or documents. The measure `far` asks beyond the
trained length of the source: YaRN is added to the source and to the models of the first seed.

Finished parts are kept in WORK, so the command can be interrupted and repeated.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import surgery
from bench.harness import arguments, report
from bench.recall_words import write_task
from surgery.anatomy import read_anatomy
from surgery.checkpoint import open_checkpoint
from surgery.loading import RunOptions
from surgery.operations.ssmax.calibration import SSMaxCalibrationSettings, calibrate, read_calibration

SHARPENED = 1.2
CALIBRATIONS: dict[str, dict[str, Any]] = {
    "constant": {"form": "constant", "outputs": "gain", "layers": "full"},
    "bias": {"form": "bias", "outputs": "gain", "layers": "full"},
    "temperature": {"form": "constant", "outputs": "unchanged", "layers": "full"},
    "gain": {"form": "none", "outputs": "gain", "layers": "full"},
    "everywhere": {"form": "constant", "outputs": "gain", "layers": "all"},
    "anchored": {"form": "anchored", "outputs": "gain", "reference_length": 256, "layers": "full"},
}
MEASURES = ("recall", "loss", "far", "abcdigits", "passkey", "induction", "words")
DEPTHS = [0.0, 0.25, 0.5, 0.75, 1.0]


def convert(model: Path, output: Path, **options: Any) -> Path:
    """A converted checkpoint, made once."""
    if not output.is_dir():
        surgery.convert(model, "ssmax", output=output, **options)
    return output


def calibrated(options: Any, kind: str, seed: int) -> Path:
    """The model calibrated in one way, on haystacks of one seed; those of a seed share their first gradients.

    Raises:
        SystemExit: WORK has this model with other settings.
    """
    output = options.work / f"{kind}-{seed}"
    given = {"seed": seed, "rounds": options.rounds, "haystacks": options.calibrate_haystacks}
    given |= {"lengths": options.calibrate_lengths, "max_loss_increase": options.max_loss_increase}
    settings = SSMaxCalibrationSettings.model_validate(given)
    if output.is_dir():
        made = read_calibration(output / "surgery" / "calibration.json").settings
        given["lengths"] = list(settings.known_lengths(read_anatomy(open_checkpoint(options.model))))
        other = [name for name, value in given.items() if made[name] != value]
        if other:
            raise SystemExit(f"{output} was calibrated with other {', '.join(other)}: choose another --work")
    else:
        print(f"calibrating {output.name}", flush=True)
        began = time.perf_counter()
        found = calibrate(
            options.model,
            options.train_text,
            options=CALIBRATIONS[kind],
            settings=settings,
            run=RunOptions(device=options.device, dtype=options.calibrate_dtype),
            work=options.work / "gradients",
        )
        print(f"  {time.perf_counter() - began:,.0f} s, {found.recall}", flush=True)
        convert(options.model, output, calibration=found)
    return output


def longer(options: Any, model: Path) -> Path:
    """The source, or a calibrated model, with YaRN for longer texts."""
    rope = {"name": "rope", "type": "yarn", "factor": options.factor}
    if options.attention_factor is not None:
        rope["attention_factor"] = options.attention_factor
    output = options.work / "-".join(map(str, (model.name, *rope.values())))
    if not output.is_dir():
        if model == options.model:
            surgery.convert(model, [rope], output=output)
        else:
            found = read_calibration(model / "surgery" / "calibration.json")
            surgery.convert(options.model, [rope, {"name": "ssmax"}], calibration=found, output=output)
    return output


def evaluated(options: Any, models: dict[str, Path], against: Path, text: Any, part: dict[str, Any]) -> Any:
    """Each model's result of one part of a suite, with its name; finished measurements are read from WORK."""
    found = surgery.evaluate(
        list(models.values()),
        against=against,
        text=text,
        suite={"name": f"{part['kind']}-{part.get('task', 'text')}", "parts": [part]},
        results=options.work / "results",
        run=RunOptions(device=options.device, dtype=options.dtype),
    )
    return zip(models, found.section(part["kind"]).results, strict=True)


def retrieval_rows(
    options: Any, models: dict[str, Path], against: str, measure: str, lengths: list[int]
) -> Iterator[dict[str, Any]]:
    """Accuracy and log-probability of a task by length, minus those of another model."""
    task = "recall" if measure == "far" else measure
    others = {name: model for name, model in models.items() if name != against}
    for length in lengths:
        part = {"kind": "retrieval", "task": task, "lengths": [length], "depths": DEPTHS, "samples": options.samples}
        if task == "recall":
            part |= {"needles": options.facts, "samples": options.haystacks}
        text = options.text if task == "recall" else ()
        for name, own in evaluated(options, others, models[against], text, part):
            score = own.overall
            row = {"measure": measure, "tokens": length, "model": name, "minus": against}
            yield row | figures(
                "log-probability", score.log_probability, score.base_log_probability, score.log_probability_difference
            )
            yield row | figures("right tokens", score.right, score.base_right, score.difference)
            yield row | figures("right answers", score.exact, score.base_exact)
            for depth, value, base in zip(DEPTHS, own.exact[0], own.base_exact[0], strict=True):
                found = {"figure": f"right answers at depth {depth:g}", "value": value, "base": base}
                yield row | found | {"change": value - base, "low": None, "high": None}


def figures(name: str, value: Any, base: Any, change: Any = None) -> dict[str, Any]:
    """A figure of a model and of the other one, and their difference with its interval, where there is one."""
    row = {"figure": name, "value": value.value, "base": base.value, "change": value.value - base.value}
    return row | {"low": None if change is None else change.low, "high": None if change is None else change.high}


def loss_rows(options: Any, models: dict[str, Path]) -> Iterator[dict[str, Any]]:
    """Loss of each kind of text up to each length, minus the source's."""
    others = {name: model for name, model in models.items() if name != "source"}
    for kind in options.kinds:
        for length in options.loss_lengths:
            part = {"kind": "loss", "length": length, "documents": options.pages}
            for name, own in evaluated(options, others, models["source"], kind, part):
                row = {"measure": "loss", "tokens": length, "model": name, "minus": "source"}
                total = own.overall
                yield row | figures(Path(kind).name, total.loss, total.base_loss, total.difference)


def word_rows(options: Any, models: dict[str, Path]) -> Iterator[dict[str, Any]]:
    """Scores of a task of lm-evaluation-harness, minus the source's."""
    others = {name: model for name, model in models.items() if name != "source"}
    folder = options.work / f"words-{options.words}"
    part = {"kind": "tasks", "names": [write_task(folder, options.kinds, options.words)], "definitions": str(folder)}
    for name, own in evaluated(options, others, models["source"], (), part):
        for score in own.scores:
            row = {"measure": "words", "tokens": None, "model": name, "minus": "source", "figure": score.metric}
            change = score.difference  # of the mean over examples, where the score itself is another function of them
            row |= {"value": score.value, "base": score.base_value}
            yield row | {"change": change.value, "low": change.low, "high": change.high}


def made(options: Any) -> dict[str, Path]:
    """The source, the controls, and each calibration with each seed."""
    models = {"source": options.model}
    if "sharpened" in options.controls:
        models["sharpened"] = convert(
            options.model, options.work / "sharpened", form="constant", start={"bias": SHARPENED}
        )
    return models | {
        f"{kind}-{seed}": calibrated(options, kind, seed) for seed in options.seeds for kind in options.calibrations
    }


def measured(options: Any, models: dict[str, Path]) -> Iterator[dict[str, Any]]:
    """The rows of each measure that was asked for, each model minus the source and minus the constants of its seed."""
    for measure in options.measures:
        if measure in ("loss", "words"):
            yield from (loss_rows if measure == "loss" else word_rows)(options, models)
            continue
        chosen, lengths = models, options.lengths
        if measure == "far":
            first = ("source", *(f"{kind}-{options.seeds[0]}" for kind in options.calibrations))
            chosen = {name: longer(options, models[name]) for name in first}
            lengths = options.far
        yield from retrieval_rows(options, chosen, "source", measure, lengths)
        for seed in options.seeds:
            own = {name: chosen[name] for kind in options.calibrations if (name := f"{kind}-{seed}") in chosen}
            if len(own) > 1 and f"constant-{seed}" in own:
                yield from retrieval_rows(options, own, f"constant-{seed}", measure, lengths)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--text", nargs="+", required=True, help="texts to hide facts in; none of the training's")
    parser.add_argument("--kinds", nargs="+", required=True, help="folders of held-out text, one for each kind")
    parser.add_argument("--train-text", nargs="+", required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of the calibrations")
    parser.add_argument("--calibrations", nargs="+", default=["constant", "bias"], choices=list(CALIBRATIONS))
    parser.add_argument("--controls", nargs="*", default=["sharpened"], choices=["sharpened"])
    parser.add_argument("--rounds", type=int, default=1, help="steps of a calibration")
    parser.add_argument("--calibrate-haystacks", type=int, default=24, help="of each step")
    parser.add_argument("--calibrate-lengths", type=int, nargs="+", help="tokens; by default the calibration's own")
    parser.add_argument("--max-loss-increase", type=float, default=0.002, help="that a calibration allows")
    parser.add_argument("--calibrate-dtype", default="bfloat16")
    parser.add_argument("--dtype", default="float32", help="of all measurements")
    parser.add_argument("--measures", nargs="+", default=["recall", "loss"], choices=MEASURES)
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024, 2048, 4096, 8192])
    parser.add_argument("--far", type=int, nargs="+", default=[16384], help="lengths of the measure far, with YaRN")
    parser.add_argument("--factor", type=float, default=4.0, help="of YaRN")
    parser.add_argument("--attention-factor", type=float, help="of YaRN; 1 leaves queries and keys as they are")
    parser.add_argument("--loss-lengths", type=int, nargs="+", default=[1024, 2048, 4096])
    parser.add_argument("--haystacks", type=int, default=12)
    parser.add_argument("--facts", type=int, default=16)
    parser.add_argument("--samples", type=int, default=8, help="prompts for each length and depth of other tasks")
    parser.add_argument("--pages", type=int, default=4)
    parser.add_argument("--words", type=int, default=150, help="examples of the measure words")
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    report("recall", [*measured(options, made(options))], options.out)


if __name__ == "__main__":
    main()
