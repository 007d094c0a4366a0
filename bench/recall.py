"""Retrieval at length: how much is gained for which loss, and how much of it is due to ln n.

    python -m bench.recall MODEL --text held-out/ --kinds kernel/ python/ headers/ --train-text texts/ --work WORK \\
        --out docs/results/data/recall.json

There are four models: the source; every query times 1.2, nothing learned; one learned constant per head; and the recipe
`ssmax-recall`. The constants and the recipe see the same rows in the same order with the same objective. All models are
asked for the same facts in the same texts, and predict the same texts of several kinds. Differences are paired, and
their intervals resample whole haystacks or documents.

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


def recall_rows(models: dict[str, Path], options: Any) -> Iterator[dict[str, Any]]:
    """Accuracy and log-probability by length, minus the source and minus the constants."""
    part = {"kind": "retrieval", "task": "recall", "needles": options.facts, "samples": options.haystacks}
    run = RunOptions(device=options.device, dtype="float32")
    for length in options.lengths:
        suite = {"name": f"recall-{length}", "parts": [{**part, "lengths": [length]}]}
        for against in ("source", "constants"):
            others = [name for name in models if name not in ("source", against)]
            found = surgery.evaluate(
                [models[name] for name in others],
                against=models[against],
                text=options.text,
                suite=suite,
                results=options.work / "results",
                run=run,
            )
            for name, own in zip(others, found.section("retrieval").results, strict=True):
                score = own.overall
                row = {"measure": "recall", "text": "facts", "tokens": length, "model": name, "minus": against}
                row |= {"exact": score.exact.value, "base exact": score.base_exact.value}
                row |= {"log-probability": score.log_probability.value}
                change = score.log_probability_difference
                yield row | {"change": change.value, "low": change.low, "high": change.high}


def loss_rows(models: dict[str, Path], options: Any) -> Iterator[dict[str, Any]]:
    """Loss of each kind of text, minus the source."""
    names = [name for name in models if name != "source"]
    run = RunOptions(device=options.device, dtype="float32")
    for kind in options.kinds:
        for length in options.loss_lengths:
            suite = {
                "name": f"loss-{length}",
                "parts": [{"kind": "loss", "length": length, "documents": options.pages}],
            }
            found = surgery.evaluate(
                [models[name] for name in names],
                against=models["source"],
                text=kind,
                suite=suite,
                results=options.work / "results",
                run=run,
            )
            for name, own in zip(names, found.section("loss").results, strict=True):
                total = own.overall
                row = {"measure": "loss", "text": Path(kind).name, "tokens": length, "model": name, "minus": "source"}
                row |= {"exact": None, "base exact": None, "log-probability": None}
                yield row | {
                    "change": total.difference.value,
                    "low": total.difference.low,
                    "high": total.difference.high,
                }


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--text", nargs="+", required=True, help="texts to hide facts in; none of the training's")
    parser.add_argument("--kinds", nargs="+", required=True, help="folders of held-out text, one for each kind")
    parser.add_argument("--train-text", nargs="+", required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--set", nargs="*", default=[], help="changes of the recipe: budget.tokens=20000")
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024, 2048, 4096, 8192])
    parser.add_argument("--loss-lengths", type=int, nargs="+", default=[1024, 2048, 4096])
    parser.add_argument("--haystacks", type=int, default=12)
    parser.add_argument("--facts", type=int, default=16)
    parser.add_argument("--pages", type=int, default=4)
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    work = options.work
    work.mkdir(parents=True, exist_ok=True)
    texts = str([str(text) for text in options.train_text])
    given = [
        f"model={options.model}",
        f"output={work / 'recall'}",
        f"data.sources.0.path={texts}",
        "control=false",
        "precision=float32",
    ]
    try:
        recipe = read_recipe("ssmax-recall", [*given, *options.set])
    except UsageError as error:
        raise SystemExit(error.message) from error
    reference = recipe.operations[0].model_dump()["reference_length"]
    bias = convert(options.model, work / "bias", form="bias", reference_length=reference)
    anchored = convert(options.model, work / "anchored", form="anchored", reference_length=reference)
    models = {
        "source": options.model,
        "sharpened": convert(options.model, work / "sharpened", form="bias", start={"bias": SHARPENED}),
        "constants": constants(recipe, anchored, bias, work / "constants", options.device),
        "recall": learned(recipe, work / "recall", options.device),
    }
    rows = [*recall_rows(models, options), *loss_rows(models, options)]
    report("recall", rows, options.out)


if __name__ == "__main__":
    main()
