"""A run that fails stops with a message and keeps the last good checkpoint; a plan estimates the needs of a run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from surgery.errors import SurgeryError
from surgery.recovery import DivergedError, finetune
from surgery.training.guard import DivergenceGuard
from surgery.training.objectives import NextToken
from surgery.training.options import Guard
from tests.recovery.conftest import MakeRecipe


def _tripped(losses: list[float], **options: Any) -> int | None:
    guard = DivergenceGuard(Guard(**{"steps": 3, "rise": 0.5, **options}))
    return next((step for step, loss in enumerate(losses, 1) if guard.add(step, loss)), None)


def test_guard() -> None:
    assert _tripped([2.0] * 50) is None
    assert _tripped([2.0, 2.0, 2.0, 3.1, 3.1, 3.1]) == 6
    assert _tripped([2.0, 2.0, 2.0, 2.9, 2.9, 2.9, 2.9]) is None, "below 1.5 times"
    assert _tripped([2.0, 2.0, 2.0, 9.0, 9.0, 2.0] * 5) is None, "never three in a row"
    assert _tripped([9.0, 9.0, 9.0, 2.0, 2.0, 2.0, 4.0, 4.0, 4.0]) == 9, "above the lowest, not the first"
    assert _tripped([9.0, 9.0]) is None and _tripped([2.0, 9.0, 9.0, 9.0, 9.0]) is None
    assert _tripped([2.0, 2.0, 2.0, 9.0, 9.0, 9.0, 9.0], steps=0) is None
    assert _tripped([2.0, 2.0, 2.0, 9.0, 9.0, 9.0], rise=4.0) is None
    tiny = [1e-4, 1e-4, 1e-4, 0.05, 0.05, 0.05]
    assert _tripped(tiny) is None, "nothing in nats"
    guard = DivergenceGuard(Guard(steps=3), least_rise=0.0)
    assert [guard.add(step, loss) for step, loss in enumerate(tiny)][-1], "much in squared error"
    rows = [{"step": step, "loss": loss} for step, loss in enumerate([2.0] * 3 + [9.0] * 2, 1)]
    resumed = DivergenceGuard(Guard(steps=3))
    resumed.add_rows([*rows, {"step": 5, "held_out_loss": 1.0}], 0)
    assert resumed.since == 4 and resumed.add(6, 9.0)
    other = DivergenceGuard(Guard(steps=3))
    other.add_rows(rows, 1)
    assert other.lowest is None, "each stage has its own"


def test_loss_that_is_traded_for_rejected_keys_has_not_risen() -> None:
    rows = [{"step": step, "loss": 0.03 * step, "sparsity": 0.8 - 0.04 * step} for step in range(1, 12)]
    bare = [{"step": row["step"], "loss": row["loss"]} for row in rows]
    for found, diverges in ((rows, False), (bare, True)):
        guard = DivergenceGuard(Guard(steps=3), terms=("sparsity",))
        assert any(guard.add_row(row) for row in found) == diverges


def test_a_rising_loss_stops_the_run_and_keeps_what_was_good(
    make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, total = 0, NextToken.total

    def rising(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1  # the trial is the first
        return total(*arguments) * (5.0 if calls > 6 else 1.0)

    monkeypatch.setattr(NextToken, "total", rising)
    recipe = make_recipe(
        budget={"steps": 20}, guard={"steps": 4}, checkpoints={"every": 1, "keep": 1}, evaluation={"every": 0}
    )
    with pytest.raises(DivergedError, match=r"step 9: the loss has been above .* since step 6") as caught:
        finetune(recipe)
    assert "out.training/checkpoint-5, and --resume continues from it" in str(caught.value)
    names = sorted(path.name for path in (tmp_path / "out.training").glob("checkpoint-*"))
    assert names == ["checkpoint-5"], "though only one is kept, and later ones were written"
    monkeypatch.setattr(NextToken, "total", total)
    result = finetune({**recipe, "guard": {"steps": 0}}, resume=True)
    assert result.resumed_from == 5 and result.steps == 20


def test_no_space_for_a_checkpoint(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    """No file may grow beyond a limit from step 3 on: as on a full disk, inside torch, safetensors and json alike."""
    recipe = make_recipe(train={"what": "full"}, checkpoints={"every": 2, "keep": 1}, budget={"steps": 6})
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    program = (
        "import resource, sys\n"
        "from surgery.commands import console, app\n"
        "from surgery import errors, recovery\n"
        "def limit(event):\n"
        "    if event['event'] == 'step' and event['step'] == 3:\n"
        "        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))\n"
        "try:\n"
        "    recovery.finetune(sys.argv[1], on_progress=limit)\n"
        "except errors.SurgeryError as error:\n"
        "    print(error); sys.exit(7)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "recipe.yaml")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 7, done.stderr
    assert "the checkpoint of step 4 could not be written" in done.stdout and "free)" in done.stdout
    assert "out.training/checkpoint-2 is complete, and --resume continues from it" in done.stdout
    assert sorted(path.name for path in (tmp_path / "out.training").glob("checkpoint-*")) == ["checkpoint-2"]
    plain = finetune({**recipe, "output": str(tmp_path / "plain")})
    resumed = finetune(tmp_path / "recipe.yaml", resume=True)
    assert resumed.resumed_from == 2 and resumed.held_out_loss_after == plain.held_out_loss_after


def test_no_space_for_the_log(make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno

    from surgery.training.folder import TrainingFolder

    append, count = TrainingFolder.append, 0

    def full(self: TrainingFolder, row: dict[str, Any]) -> None:
        nonlocal count
        count += 1
        if count == 4:
            raise self.unwritten("the log", OSError(errno.ENOSPC, "No space left on device"))
        append(self, row)

    monkeypatch.setattr(TrainingFolder, "append", full)
    recipe = make_recipe(checkpoints={"every": 1})
    with pytest.raises(SurgeryError, match=r"the log could not be written: .*No space left") as caught:
        finetune(recipe)
    assert "checkpoint-2 is complete" in str(caught.value)
    monkeypatch.setattr(TrainingFolder, "append", append)
    assert finetune(recipe, resume=True).resumed_from == 2


def test_estimate(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    recipe = make_recipe(
        control="untouched",
        train={"what": "scale+lora"},
        stages=[
            {"train": {"what": "scale"}, "objective": {"name": "match"}, "budget": {"steps": 3}},
            {"batch": {"accumulation": 3}, "budget": {"steps": 5}},
        ],
    )
    assert finetune(recipe, dry_run=True).plan.estimate is None
    result = finetune(recipe, dry_run=True, measure=True)
    measured = result.plan.estimate
    assert result.output is None and measured is not None and measured.device == "cpu"
    assert len(measured.step_seconds) == 2 and all(each > 0 for each in measured.step_seconds)
    expected = 3 * measured.step_seconds[0] + 5 * measured.step_seconds[1]
    assert measured.training_seconds == pytest.approx(expected, abs=0.06)
    assert measured.control_seconds == pytest.approx(measured.training_seconds + measured.held_out_seconds / 3, abs=0.1)
    assert measured.peak_bytes > 50_000_000, "torch alone is more"
    assert sorted(path.name for path in tmp_path.iterdir()) == [], "nothing is left behind"
    json.dumps(result.to_dict(), allow_nan=False)


def test_a_dry_run_is_light(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(json.dumps(make_recipe(train={"what": "scale+lora"})))
    program = (
        "import sys\n"
        "from surgery.commands import console, app\n"
        "assert console.run(app.app, ['finetune', sys.argv[1], '--dry-run']) == 0\n"
        "heavy = {'torch', 'transformers', 'peft', 'accelerate', 'datasets'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "recipe.yaml")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    planned = finetune(tmp_path / "recipe.yaml", dry_run=True).plan
    ran = finetune(tmp_path / "recipe.yaml").plan
    assert planned == ran, "tokenizer.json alone counts the same"
