"""Tiny converted checkpoints with a byte tokenizer, texts, and recipes over them."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from surgery.commands import console
from surgery.commands.app import app
from tests.families import tiny_model

WORDS = ["query", "finds", "key", "and", "value", "weighted", "by", "how", "near", "they", "are", "in", "many", "heads"]
START = {
    "anchored": {"scale": 0.0},
    "bias": {"scale": 0.0, "bias": 1.0},
    "paper": {"scale": 0.2},
    "logn": {},
    "constant": {"bias": 1.0},
}


def write_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<pad>": 0, "<s>": 1, "</s>": 2, **{letter: 3 + i for i, letter in enumerate(alphabet)}}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    ).save_pretrained(folder)


class CrashError(Exception):
    """Raised in the middle of a training by :func:`crash`."""


def crash(recipe: Any, *, step: int | None = None, event: str = "step") -> None:
    """Train until an event (of one step, where it is given), and crash there."""
    from surgery.recovery import finetune

    def raising(told: dict[str, Any]) -> None:
        if told["event"] == event and (step is None or told["step"] == step):
            raise CrashError

    with pytest.raises(CrashError):
        finetune(recipe, on_progress=raising)


def objective_sum(objective: Any, model: Any, batch: dict[str, Any], teacher: Any = None) -> Any:
    """An objective's sum; by default the same weights teach."""
    from surgery.recovery.teachers import SameWeights

    return objective.total(model, batch, teacher or SameWeights())


def convert_by_hand(
    source: Path,
    out: Path,
    form: str = "anchored",
    layers: list[int] | None = None,
    scale: float | None = None,
    attention: str = "layers.{layer}.self_attn",
    prefix: str = "model.",
) -> Path:
    """The format of a converted checkpoint, written without surgery.conversion."""
    import numpy
    from safetensors import safe_open
    from safetensors.numpy import save_file

    from surgery.operations.code import travelling_code
    from surgery.runtime import lock

    shutil.copytree(source, out)
    config = json.loads((source / "config.json").read_text())
    (out / "model.safetensors").rename(out / "source-model.safetensors")
    for name, content in travelling_code(["ssmax"]).items():
        (out / name).write_bytes(content)
    stem = config["architectures"][0].removesuffix("ForCausalLM")
    layers = list(range(config["num_hidden_layers"])) if layers is None else layers
    config |= {
        "model_type": f"surgery_{config['model_type']}",
        "architectures": [f"Surgery{stem}ForCausalLM"],
        "auto_map": {
            "AutoConfig": f"modeling_surgery.Surgery{stem}Config",
            "AutoModel": f"modeling_surgery.Surgery{stem}Model",
            "AutoModelForCausalLM": f"modeling_surgery.Surgery{stem}ForCausalLM",
        },
        "surgery": {
            "format_version": 1,
            "attention": attention,
            "operations": [
                {
                    "name": "ssmax",
                    "form": form,
                    "reference_length": 64,
                    "layers": layers,
                    "heads": None,
                    "start": START[form],
                }
            ],
        },
    }
    (out / "config.json").write_text(json.dumps(lock(config), indent=2))
    start = START[form] if scale is None else {**START[form], "scale": scale}
    new = {
        f"{prefix}{attention.format(layer=layer)}.ssmax.{kind}": numpy.full(
            config["num_attention_heads"], value, numpy.float32
        )
        for layer in layers
        for kind, value in start.items()
    }
    weight_map = dict.fromkeys(safe_open(out / "source-model.safetensors", "np").keys(), "source-model.safetensors")
    if new:
        save_file(new, out / "surgery-ssmax.safetensors", metadata={"format": "pt"})
        weight_map |= dict.fromkeys(new, "surgery-ssmax.safetensors")
    (out / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": 1, "kept": "yes"}, "weight_map": weight_map})
    )
    (out / "surgery").mkdir()
    (out / "surgery" / "plan.json").write_text("{}\n")
    (out / "LICENSE").write_text("do as you like\n")
    return out


Converted = Callable[..., Path]


@pytest.fixture(scope="session")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Converted:
    """``converted("llama", form="bias")``: a tiny converted checkpoint, made once; never written to.

    ``by_hand=False`` gives its source alone, for families that :func:`convert_by_hand` does not know.
    """
    made: dict[str, Path] = {}

    def make(
        family: str = "llama", *, dtype: Any = None, spread: float = 0.05, by_hand: bool = True, **options: Any
    ) -> Path:
        key = f"{family}-{dtype}-{spread}-{by_hand}-{sorted(options.items())}"
        if key not in made:
            folder = tmp_path_factory.mktemp("converted")
            model = tiny_model(family, vocab_size=260, initializer_range=spread)
            (model if dtype is None else model.to(dtype)).save_pretrained(folder / "source")
            write_tokenizer(folder / "source")
            made[key] = (
                convert_by_hand(folder / "source", folder / "model", **options) if by_hand else folder / "source"
            )
        return made[key]

    return make


@pytest.fixture(scope="session")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixteen short files of unequal length."""
    folder = tmp_path_factory.mktemp("texts")
    chance = random.Random(7)
    for number in range(16):
        words = [chance.choice(WORDS) for _ in range(chance.randint(4, 30))]
        (folder / f"{number:02}.txt").write_text(" ".join(words) + "\n")
    return folder


MakeRecipe = Callable[..., dict[str, Any]]


@pytest.fixture
def make_recipe(converted: Converted, texts: Path, tmp_path: Path) -> MakeRecipe:
    """A small recipe as a dictionary; sections given are merged over it."""

    def make(model: Path | None = None, **sections: Any) -> dict[str, Any]:
        recipe: dict[str, Any] = {
            "model": str(model or converted()),
            "output": str(tmp_path / "out"),
            "data": {"text": str(texts), "held_out": 0.2, "sequence_length": 48},
            "optimizer": {"scale_lr": 0.02, "warmup": 0},
            "budget": {"steps": 4},
            "batch": {"sequences": 2},
        }
        for key, value in sections.items():
            recipe[key] = {**recipe.get(key, {}), **value} if isinstance(value, dict) and key != "budget" else value
        return recipe

    return make


class Outcome:
    """What a command gave: its exit code, and what it wrote."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


@pytest.fixture
def surgery_command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """``surgery_command("finetune", ...)``: run a command in this process."""
    from rich.console import Console

    def run(*arguments: str) -> Outcome:
        # Consoles hold the streams of the moment when they were made.
        monkeypatch.setattr(console, "out", Console(width=120))
        monkeypatch.setattr(console, "err", Console(stderr=True, width=120))
        code = console.run(app, list(arguments))
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return run
