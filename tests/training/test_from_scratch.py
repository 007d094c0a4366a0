"""The engine alone: a plain causal language model, from random weights, without any operation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from surgery.errors import UsageError
from surgery.training import Data, TrainingData, TrainingFolder, TrainingOptions, read_data, train
from surgery.training.objectives import Distill
from surgery.training.options import AdamW, Batch, Budget, Checkpoints, Evaluation
from surgery.training.teacher import SecondModel
from tests.families import tiny_model

LENGTH = 32


@pytest.fixture
def data(tmp_path: Path) -> TrainingData:
    (tmp_path / "texts").mkdir()
    for number in range(12):
        (tmp_path / "texts" / f"{number}.txt").write_text(f"{number} keys and values " * (number + 2))
    options = Data(text=str(tmp_path / "texts"), held_out=0.2, sequence_length=LENGTH)
    return read_data(options, lambda texts: [list(text.encode()) for text in texts])


def options(**changes: Any) -> TrainingOptions:
    given: dict[str, Any] = {
        "sequence_length": LENGTH,
        "budget": Budget(steps=6),
        "batch": Batch(sequences=2),
        "optimizer": AdamW(lr=1e-2, weight_decay=0.1, warmup=0),
        "checkpoints": Checkpoints(every=2),
        "evaluation": Evaluation(every=3),
    }
    return TrainingOptions(**{**given, **changes})


def fresh_model(**changes: Any) -> Any:
    torch.manual_seed(0)
    return tiny_model("llama", vocab_size=260, **changes).float()


def rows(folder: TrainingFolder) -> list[dict[str, Any]]:
    return [json.loads(line) for line in folder.log_path.read_text().splitlines()]


class CrashError(Exception):
    pass


def test_a_model_from_scratch_learns_and_is_saved(data: TrainingData, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    model, folder = fresh_model(), TrainingFolder(tmp_path / "out")
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    progress = train(model, data, options(), folder, device="cpu")
    assert progress.step == 6 and progress.tokens > 0
    assert all(not torch.equal(before[name], parameter) for name, parameter in model.named_parameters())
    losses = [row["loss"] for row in rows(folder) if "loss" in row]
    assert len(losses) == 6 and losses[-1] < losses[0] - 0.2
    assert all(
        row.keys() == {"step", "tokens", "loss", "learning_rates", "grad_norm", "seconds"}
        for row in rows(folder)
        if "loss" in row
    )
    assert [row["step"] for row in rows(folder) if "held_out_loss" in row] == [3, 6]
    model.save_pretrained(tmp_path / "saved")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert type(loaded).__name__ == "LlamaForCausalLM"
    assert all(torch.equal(own, model.get_parameter(name)) for name, own in loaded.named_parameters())


def test_it_resumes_to_the_same_bits(data: TrainingData, tmp_path: Path) -> None:
    """With dropout, whose random state is resumed too."""
    whole = fresh_model(attention_dropout=0.2)
    train(whole, data, options(), TrainingFolder(tmp_path / "whole"), device="cpu")

    def crash(event: dict[str, Any]) -> None:
        if event["event"] == "step" and event["step"] == 5:
            raise CrashError

    folder = TrainingFolder(tmp_path / "out")
    with pytest.raises(CrashError):
        train(fresh_model(attention_dropout=0.2), data, options(), folder, device="cpu", on_progress=crash)
    with pytest.raises(UsageError, match="did not finish"):
        train(fresh_model(attention_dropout=0.2), data, options(), folder, device="cpu")
    model = fresh_model(attention_dropout=0.2)
    assert train(model, data, options(), folder, device="cpu", resume=True).step == 6
    assert all(torch.equal(parameter, whole.get_parameter(name)) for name, parameter in model.named_parameters())

    def timeless(run: TrainingFolder) -> list[dict[str, Any]]:
        return [{key: value for key, value in row.items() if key != "seconds"} for row in rows(run)]

    assert timeless(folder) == timeless(TrainingFolder(tmp_path / "whole"))


def test_another_model_teaches(data: TrainingData, tmp_path: Path) -> None:
    teacher = fresh_model(initializer_range=0.05)
    student = fresh_model()
    folder = TrainingFolder(tmp_path / "out")
    given = options(objective=Distill(name="distill"))
    train(student, data, given, folder, teacher=SecondModel(teacher), device="cpu")
    losses = [row["loss"] for row in rows(folder) if "loss" in row]
    assert losses[-1] < losses[0]


@pytest.mark.slow  # lint-imports has a contract of it; here also what is imported at run time
def test_no_room_above_is_imported(tmp_path: Path) -> None:
    import subprocess
    import sys

    program = (
        "import sys, surgery.training, surgery.training.trainer, surgery.training.api, surgery.training.trial\n"
        "above = [name for name in sys.modules if name.startswith(('surgery.recovery', 'surgery.conversion'))]\n"
        "assert not above, above\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
