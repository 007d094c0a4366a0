"""Retrieval at length: how much is gained for which loss, and how much of it is due to ln n.

    python -m bench.recall MODEL --text held-out/ --kinds kernel/ python/ headers/ --train-text texts/ --work WORK \\
        --out docs/results/data/recall.json

There are four models: the source; every query times 1.2, nothing learned; one learned constant per head; and the recipe
`ssmax-recall`. The constants and the recipe see the same rows in the same order with the same objective; each seed
trains both. All models are asked for the same facts in the same texts, and predict the same texts of several kinds.
Differences are paired, and their intervals resample whole haystacks or documents. The measure `far` asks beyond the
trained length of the source: YaRN is added to the source and to the models of the first seed.

Finished parts are kept in WORK, so the command can be interrupted and repeated.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

import surgery
from bench.harness import arguments, report
from surgery.checkpoint import open_checkpoint
from surgery.errors import UsageError
from surgery.loading import RunOptions, load_model, load_tokenizer
from surgery.recovery import read_recipe
from surgery.recovery.api import read_rows
from surgery.recovery.controls import apply_control
from surgery.recovery.layout import Layout
from surgery.recovery.parameters import choose_trained
from surgery.recovery.recipe import Recipe
from surgery.recovery.stage_hooks import stage_hooks
from surgery.recovery.teachers import SameWeights
from surgery.training.api import train
from surgery.training.folder import TrainingFolder

SHARPENED = 1.2
MEASURES = ("recall", "loss", "far", "abcdigits", "passkey", "induction")
DEPTHS = [0.0, 0.25, 0.5, 0.75, 1.0]
OPERATION = "surgery-operations.safetensors"


def convert(model: Path, output: Path, **options: Any) -> Path:
    """A converted checkpoint, made once."""
    if not output.is_dir():
        surgery.convert(model, "ssmax", output=output, **options)
    return output


def learned(recipe: Recipe, output: Path, device: str) -> Path:
    """The recipe's own result."""
    if not output.is_dir():
        began = output.with_name(output.name + ".training") / "run.json"
        surgery.finetune(recipe, resume=began.is_file(), device=device)
    return output


def constants(recipe: Recipe, anchored: Path, bias: Path, output: Path, device: str) -> Path:
    """One constant per head, trained on the recipe's rows, as the form ``bias`` with s = 0."""
    if output.is_dir():
        return output
    layout = Layout(open_checkpoint(anchored).config)
    model = load_model(anchored, RunOptions(device=device, dtype="float32"))
    apply_control(model, "temperature", layout)
    names = choose_trained(model, recipe, layout, "temperature")
    tokenizer = load_tokenizer(anchored)

    def offsets(text: str) -> tuple[list[int], list[tuple[int, int]]]:
        found = tokenizer(text, return_offsets_mapping=True, verbose=False)
        return found["input_ids"], found["offset_mapping"]

    data = read_rows(recipe, lambda texts: tokenizer(texts, verbose=False)["input_ids"], None, offsets)
    options = recipe.training_options()
    rate = options.optimizer.model_copy(update={"lr": recipe.optimizer.scale_lr})
    folder = TrainingFolder(output)
    train(
        model,
        data,
        options.model_copy(update={"optimizer": rate}),
        folder,
        teacher=SameWeights(),
        extensions=lambda stage: stage_hooks(model, layout, recipe),
        resume=(folder.path / "run.json").is_file(),
        device=device,
    )
    partial = output.with_name(output.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(bias, partial)
    numbers = load_file(partial / OPERATION)
    parameters = dict(model.named_parameters())
    numbers |= {name: parameters[name].detach().cpu().contiguous() for name in names}
    save_file(numbers, partial / OPERATION, metadata={"format": "pt"})
    partial.rename(output)
    folder.remove()
    return output


def longer(model: Path, output: Path, factor: float) -> Path:
    """A model with YaRN, for texts ``factor`` times as long."""
    if not output.is_dir():
        surgery.convert(model, "rope", output=output, type="yarn", factor=factor)
    return output


def evaluated(options: Any, models: dict[str, Path], against: Path, text: Any, part: dict[str, Any]) -> Any:
    """Each model's result of one part of a suite, with its name; finished measurements are read from WORK."""
    found = surgery.evaluate(
        list(models.values()),
        against=against,
        text=text,
        suite={"name": f"{part['kind']}-{part.get('task', 'text')}", "parts": [part]},
        results=options.work / "results",
        run=RunOptions(device=options.device, dtype="float32"),
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
        text = options.text if task == "recall" else None
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


def trained(options: Any) -> dict[str, Path]:
    """The source, the source with every query sharpened, and for each seed the recipe's result and its control."""
    work = options.work
    models = {
        "source": options.model,
        "sharpened": convert(options.model, work / "sharpened", form="bias", start={"bias": SHARPENED}),
    }
    for seed in options.seeds:
        given = {
            "model": options.model,
            "output": work / f"recall-{seed}",
            "data.sources.0.path": [str(text) for text in options.train_text],
            "data.sources.0.seed": seed,
            "seed": seed,
            "control": "false",
            "precision": "float32",
        }
        try:
            recipe = read_recipe("ssmax-recall", [*(f"{key}={value}" for key, value in given.items()), *options.set])
        except UsageError as error:
            raise SystemExit(error.message) from error
        reference = recipe.operations[0].model_dump()["reference_length"]
        bias = convert(options.model, work / "bias", form="bias", reference_length=reference)
        anchored = convert(options.model, work / "anchored", form="anchored", reference_length=reference)
        models[f"constants-{seed}"] = constants(recipe, anchored, bias, work / f"constants-{seed}", options.device)
        models[f"recall-{seed}"] = learned(recipe, work / f"recall-{seed}", options.device)
    return models


def measured(options: Any, models: dict[str, Path]) -> Iterator[dict[str, Any]]:
    """The rows of each measure that was asked for, each model minus the source and minus the constants of its seed."""
    for measure in options.measures:
        if measure == "loss":
            yield from loss_rows(options, models)
            continue
        chosen, lengths = models, options.lengths
        if measure == "far":
            first = options.seeds[0]
            chosen = {
                name: longer(models[name], options.work / f"{name}-longer", options.factor)
                for name in ("source", f"constants-{first}", f"recall-{first}")
            }
            lengths = options.far
        yield from retrieval_rows(options, chosen, "source", measure, lengths)
        for seed in options.seeds:
            pair = {name: chosen[name] for name in (f"constants-{seed}", f"recall-{seed}") if name in chosen}
            if pair:
                yield from retrieval_rows(options, pair, f"constants-{seed}", measure, lengths)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--text", nargs="+", required=True, help="texts to hide facts in; none of the training's")
    parser.add_argument("--kinds", nargs="+", required=True, help="folders of held-out text, one for each kind")
    parser.add_argument("--train-text", nargs="+", required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="a training and a control for each")
    parser.add_argument("--measures", nargs="+", default=["recall", "loss"], choices=MEASURES)
    parser.add_argument("--set", nargs="*", default=[], help="changes of the recipe: budget.tokens=20000")
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024, 2048, 4096, 8192])
    parser.add_argument("--far", type=int, nargs="+", default=[16384], help="lengths of the measure far, with YaRN")
    parser.add_argument("--factor", type=float, default=4.0, help="of YaRN")
    parser.add_argument("--loss-lengths", type=int, nargs="+", default=[1024, 2048, 4096])
    parser.add_argument("--haystacks", type=int, default=12)
    parser.add_argument("--facts", type=int, default=16)
    parser.add_argument("--samples", type=int, default=8, help="prompts for each length and depth of other tasks")
    parser.add_argument("--pages", type=int, default=4)
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    report("recall", [*measured(options, trained(options))], options.out)


if __name__ == "__main__":
    main()
