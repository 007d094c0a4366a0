"""``surgery finetune`` and ``surgery recipes``."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import surgery.commands.finetune
import surgery.commands.recipes  # noqa: F401
from surgery.commands import console
from tests.recovery.conftest import Converted, MakeRecipe
from tests.tokenizers import save_tiny_tokenizer


@pytest.fixture
def recipe_file(make_recipe: MakeRecipe, tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(make_recipe(budget={"steps": 2}), indent=2))
    return path


def test_light(tmp_path: Path) -> None:
    """Help and recipe checks leave torch alone."""
    (tmp_path / "r.yaml").write_text("model: m\noutput: o\ndata: {text: t}\nbudget: {steps: 1}\n")
    program = (
        "import sys\n"
        "from surgery.commands import console, app\n"
        "import surgery.commands.finetune, surgery.commands.recipes\n"
        "lines = ('finetune --help', 'recipes list', 'recipes show tiny', 'recipes schema', 'recipes check r.yaml')\n"
        "for line in lines:\n"
        "    assert console.run(app.app, line.split()) == 0, line\n"
        "heavy = {'torch', 'transformers', 'peft', 'accelerate', 'matplotlib', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_recipes(surgery_command: Any, tmp_path: Path) -> None:
    listed = json.loads(surgery_command("recipes", "list", "--json").out)
    assert listed["kind"] == "recipes" and {"tiny", "ssmax-scale"} <= {entry["name"] for entry in listed["recipes"]}
    assert {entry["model"] for entry in listed["recipes"]} == {"converted", "source", "new"}, "each has a group"
    shown = surgery_command("recipes", "list").out
    assert all(f" {entry['name']} " in shown for entry in listed["recipes"])
    assert shown.index(" ssmax-scale ") < shown.index(" ssmax-recall ") < shown.index(" ssmax-pretrain "), "by model"
    target = tmp_path / "mine.yaml"
    assert surgery_command("recipes", "copy", "tiny", str(target)).code == 0
    assert target.read_text() == surgery_command("recipes", "show", "tiny").out
    again = surgery_command("recipes", "copy", "tiny", str(target))
    assert again.code == 2 and "exists" in again.err
    assert surgery_command("recipes", "copy", "tiny", str(tmp_path)).code == 0 and (tmp_path / "tiny.yaml").exists()
    assert json.loads(surgery_command("recipes", "schema").out)["title"] == "Recipe"
    unknown = surgery_command("recipes", "show", "tyni")
    assert unknown.code == 2 and "'tiny'" in unknown.err


def test_check(surgery_command: Any, recipe_file: Path) -> None:
    assert "valid" in surgery_command("recipes", "check", str(recipe_file)).out
    wrong = surgery_command("recipes", "check", str(recipe_file), "--set", "optimizer.lrr=1", "--json")
    assert wrong.code == 2 and "optimizer.lrr" in wrong.err
    document = json.loads(wrong.out)
    assert not document["valid"] and document["problems"][0]["path"] == "optimizer.lrr"
    assert json.loads(surgery_command("recipes", "check", str(recipe_file), "--json").out)["recipe"]["seed"] == 0


def test_placeholders_are_named(surgery_command: Any, tmp_path: Path, converted: Converted) -> None:
    surgery_command("recipes", "copy", "ssmax-scale", str(tmp_path / "r.yaml"))
    outcome = surgery_command("finetune", str(tmp_path / "r.yaml"))
    assert outcome.code == 2
    assert "--set model=... --set data.text=... --set output=..." in outcome.err
    outcome = surgery_command("finetune", str(tmp_path / "r.yaml"), "--set", f"model={converted()}")
    assert "--set data.text=... --set output=..." in outcome.err and "--set model" not in outcome.err


def test_dry_run(surgery_command: Any, recipe_file: Path, tmp_path: Path) -> None:
    outcome = surgery_command("finetune", str(recipe_file), "--dry-run", "--json", "--batch-size", "3")
    document = json.loads(outcome.out)
    assert document["kind"] == "finetune" and document["output"] is None
    assert document["plan"]["steps"] == 2 and document["plan"]["parameters"] == {"scale": 12}
    shown = surgery_command("finetune", str(recipe_file), "--dry-run", "--dtype", "bfloat16").out
    assert "12 of the operation" in shown and shown.endswith(f"Next: surgery finetune {recipe_file} --dtype bfloat16\n")
    assert "bfloat16" in shown and "memory" in shown
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.training").exists()


def test_a_run_that_cannot_be_worth_it_is_noted(
    surgery_command: Any, recipe_file: Path, make_source: Any, tmp_path: Path
) -> None:
    """A teacher that says the same, and text that is memorised."""
    from surgery.conversion import convert

    fresh = convert(make_source("llama"), output=tmp_path / "fresh").output
    save_tiny_tokenizer(fresh)
    many = ("--set", "budget={tokens: 200000}", "--set", "objective.name=distill")
    noted = surgery_command("finetune", str(recipe_file), "--dry-run", *many, "--set", f"model={fresh}")
    assert noted.code == 0, noted.err
    assert "has nothing to learn" in noted.err and "will memorise it" in noted.err
    trained = surgery_command("finetune", str(recipe_file), "--dry-run", "--set", "objective.name=distill")
    assert trained.code == 0 and "note:" not in trained.err


def test_training_beyond_the_positions_is_noted(surgery_command: Any, recipe_file: Path) -> None:
    known = 64
    for length, noted in ((known, False), (2 * known, True)):
        ran = surgery_command("finetune", str(recipe_file), "--dry-run", "--set", f"data.sequence_length={length}")
        assert ran.code == 0 and (f"longer than the model's {known} positions" in " ".join(ran.err.split())) == noted


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--device", "foo"], "no device has this name"),
        (["--device", "foo", "--dry-run"], "no device has this name"),
        (["--attn-implementation", "foo"], "not known to transformers"),
    ],
)
def test_what_it_shall_run_on_is_looked_at_before_the_text(
    surgery_command: Any, recipe_file: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], said: str
) -> None:
    monkeypatch.setattr("surgery.recovery.api.read_rows", None)
    ran = surgery_command("finetune", str(recipe_file), *words)
    assert ran.code == 2 and said in ran.err


@pytest.mark.parametrize("named", [False, True])
def test_the_next_command_has_the_source_and_no_text_of_the_training(
    surgery_command: Any, recipe_file: Path, tmp_path: Path, texts: Path, converted: Converted, named: bool
) -> None:
    source = converted().parent / "source"
    performed = ("--set", f"model={source}", "--set", "operations=[{name: ssmax}]")
    others = ("--set", f"data.held_out=[{texts}/*1.txt]") if named else ()
    ran = surgery_command("finetune", str(recipe_file), *performed, *others)
    expected = f"surgery evaluate {tmp_path / 'out'} --against {source} "
    expected += f"--text {shlex.quote(f'{texts}/*1.txt')}" if named else "--suite recall"
    assert ran.code == 0 and ran.out.endswith(f"Next: {expected}\n"), ran.out[-300:]


def test_ctrl_c_is_answered_in_words(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from rich.console import Console

    from surgery.commands.finetune import _listening

    monkeypatch.setattr(console, "err", Console(stderr=True, width=120))
    with _listening(None, quiet=False) as tell:
        tell({"event": "stopping", "step": 6, "checkpoint": 5})
        tell({"event": "stopping", "step": 1, "checkpoint": None})
    assert capsys.readouterr().err.splitlines() == [
        "finishing step 6, then saving; again: stop now, last checkpoint step 5",
        "finishing step 1, then saving; again: stop now, no checkpoint yet",
    ]


@pytest.mark.parametrize("words", [[], ["--dry-run"]])
def test_an_output_where_nothing_can_be_written_is_refused_before_the_text(
    surgery_command: Any, recipe_file: Path, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    monkeypatch.setattr("surgery.recovery.api.read_rows", None)
    ran = surgery_command("finetune", str(recipe_file), "--set", "output=/proc/nowhere/out", *words)
    assert ran.code == 2 and "nothing can be written in '/proc/nowhere'" in ran.err


def test_run_with_events(surgery_command: Any, recipe_file: Path, tmp_path: Path) -> None:
    events = tmp_path / "events.jsonl"
    outcome = surgery_command("finetune", str(recipe_file), "--json", "--events", str(events), "--device", "cpu")
    assert outcome.code == 0, outcome.err
    result = json.loads(outcome.out)
    assert result["steps"] == 2 and result["output"] == str(tmp_path / "out")
    kinds = [json.loads(line)["event"] for line in events.read_text().splitlines()]
    expected = ["plan", "trial", "evaluation", "step", "step", "checkpoint", "evaluation", "writing", "done"]
    assert [kind for kind in kinds if kind not in ("reading", "tokenizing", "held_out")] == expected
    assert kinds[0] == "reading" and kinds[kinds.index("plan") - 1] == "tokenizing"
    assert kinds[kinds.index("trial") + 1] == "held_out" == kinds[kinds.index("writing") - 2]
    again = surgery_command("finetune", str(recipe_file), "-q")
    assert again.code == 2 and "not empty" in again.err
    forced = surgery_command("finetune", str(recipe_file), "-q", "--force")
    assert "Next:" not in forced.out
    assert forced.code == 0 and "held-out loss" in forced.out and "held-out" not in forced.err


def test_side_by_side_on_the_terminal(surgery_command: Any, recipe_file: Path, tmp_path: Path) -> None:
    controls = ("--set", "control=[untouched, temperature]")
    planned = surgery_command("finetune", str(recipe_file), "--dry-run", *controls)
    assert "untouched, temperature; each takes as long" in planned.out
    shown = surgery_command("finetune", str(recipe_file), "-q", *controls)
    assert shown.code == 0, shown.err
    rows = {line.split()[1]: line for line in shown.out.splitlines() if line.startswith("│")}
    assert {"source", "converted", "recovered", "untouched", "temperature"} <= rows.keys()
    assert rows["converted"].count(" to ") == 3, "loss, model - source, recovered - model"
    assert "this control is the source model" in " ".join(shown.out.split())
    document = json.loads(surgery_command("finetune", str(recipe_file), "--json", "--force", *controls).out)
    assert [model["name"] for model in document["comparison"]["models"]][-1] == "temperature"
    assert document["comparison"]["interval"]["level"] == 0.95


def test_exit_codes(surgery_command: Any, recipe_file: Path, converted: Converted) -> None:
    def code(*arguments: str) -> int:
        return int(surgery_command("finetune", str(recipe_file), *arguments).code)

    assert code("--set", "nonsense=1") == 2
    assert code("--set", f"model={converted(form='logn')}") == 3
    assert code("--set", "model=./missing") == 2
    assert code("--set", "data.text=missing/*.md") == 2
    assert code("--resume") == 2
    assert code("--dtype", "float16") == 2
    assert surgery_command("finetune", "missing.yaml").code == 2


def test_measure(surgery_command: Any, recipe_file: Path) -> None:
    shown = surgery_command("finetune", str(recipe_file), "--dry-run", "--measure")
    assert "time (measured)" in shown.out and "memory (measured)" in shown.out, shown.err
    document = json.loads(surgery_command("finetune", str(recipe_file), "--dry-run", "--measure", "--json").out)
    assert document["plan"]["estimate"]["step_seconds"]
    assert surgery_command("finetune", str(recipe_file), "--measure").code == 2


def test_show_config(surgery_command: Any, recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SURGERY_SET", "seed=7")
    arguments = ("finetune", str(recipe_file), "--show-config", "--batch-size", "3", "--set", "optimizer.clip=2")
    document = json.loads(surgery_command(*arguments, "--json").out)
    rows = {row["key"]: (row["value"], row["from"]) for row in document["config"]}
    assert rows["seed"] == (7, "SURGERY_SET") and rows["optimizer.clip"] == (2, "--set")
    assert rows["batch.sequences"] == (3, "--batch-size") and rows["train.what"] == ("scale", "default")
    shown = surgery_command(*arguments)
    assert "SURGERY_SET" in shown.out and "recipe.yaml:" in shown.out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["recipe.yaml"]
    checked = json.loads(surgery_command("recipes", "check", str(recipe_file), "--json").out)
    assert checked["recipe"]["seed"] == 7
    planned = json.loads(surgery_command("finetune", str(recipe_file), "--dry-run", "--json", "--set", "seed=1").out)
    assert planned["plan"]["steps"] == 2
    assert surgery_command("recipes", "reference").out.startswith(
        "| key | value | default | meaning |\n|---|---|---|---|\n| `model` |"
    )


def test_a_shipped_recipe_is_used_by_its_name(surgery_command: Any, tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "tiny").mkdir()  # a model folder of the same name is no recipe
    monkeypatch.chdir(tmp_path)
    ran = surgery_command("recipes", "check", "tiny")
    assert ran.code == 0 and "tiny: valid" in ran.out
    assert "model, output, data.text: still a placeholder" in " ".join(ran.err.split())
    filled = ("--set", "model=m", "--set", "output=o", "--set", "data.text=t", "--set", "train.layers=9")
    ran = surgery_command("recipes", "check", "tiny", *filled)
    assert ran.code == 0 and ran.err == ""
    assert surgery_command("finetune", "tiny", *filled, "--show-config").code == 0
    missing = surgery_command("recipes", "check", "tiney")
    assert missing.code == 2 and "did you mean 'tiny'?" in missing.err


def test_an_unknown_kind_is_named_with_the_nearest(surgery_command: Any, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(
        "model: m\noutput: o\ndata: {text: t}\nbudget: {steps: 1}\ntrain: {what: scales}\n"
    )
    ran = surgery_command("recipes", "check", str(tmp_path / "r.yaml"))
    assert ran.code == 2 and "unknown what 'scales'; did you mean `scale`?" in ran.err
