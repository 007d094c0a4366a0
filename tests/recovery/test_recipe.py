"""The schema, its reader and its errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from surgery.errors import UsageError
from surgery.recovery import (
    Recipe,
    RecipeError,
    dump_recipe,
    environment_overrides,
    explain_recipe,
    json_schema,
    read_recipe,
)
from surgery.schemas.reference import reference
from surgery.schemas.shipped import shipped_file, shipped_files
from surgery.schemas.unions import TAGS, models_in

ROOT = Path(__file__).parents[2]
SMALL: dict[str, Any] = {"model": "m", "output": "o", "data": {"text": "t"}, "budget": {"steps": 1}}


def _faults(tmp_path: Path, text: str, *overrides: str) -> list[tuple[int | None, str, str]]:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError) as caught:
        read_recipe(path, overrides)
    assert str(path) in str(caught.value)
    return [(problem.line, problem.path, problem.message) for problem in caught.value.problems]


def test_all_faults_at_once_with_lines_and_keys(tmp_path: Path) -> None:
    text = """\
modle: a
model: b
output: c
data:
  text: [x]
  seqence_length: 12
  lr: 3
train:
  what: scale+lora
  rnk: 3
  rank: "4"
optimizer:
  clip: 1
  clip: 2
lr: 1
budget: {tokens: 3, steps: 4}
precision: fp32
zzz: 1
"""
    faults = _faults(tmp_path, text, "evaluation.every=x", "batch.sequence=2")
    assert [(line, path) for line, path, _ in faults] == [
        (1, "modle"),
        (6, "data.seqence_length"),
        (7, "data.lr"),
        (10, "train.rnk"),
        (11, "train.rank"),
        (14, "optimizer.clip"),
        (15, "lr"),
        (16, "budget"),
        (17, "precision"),
        (18, "zzz"),
        (None, "batch.sequence"),
        (None, "evaluation.every"),
    ]
    messages = {path: message for _, path, message in faults}
    assert "`model`" in messages["modle"]
    assert "`sequence_length`" in messages["data.seqence_length"]
    assert "belongs under `optimizer`" in messages["data.lr"]
    assert "`rank`" in messages["train.rnk"]
    assert "'4'" in messages["train.rank"]
    assert "first on line 13" in messages["optimizer.clip"]
    assert "belongs under `optimizer`" in messages["lr"]
    assert "exactly one" in messages["budget"]
    assert "'fp32'" in messages["precision"] and "float32" in messages["precision"]
    assert "valid here: model, operations, output" in messages["zzz"]
    assert "`sequences`" in messages["batch.sequence"]


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "must contain keys"),
        ("- a\n", "must contain keys"),
        ("a: [1\n", "not YAML"),
        ("a: 1\n---\nb: 2\n", "not YAML"),
        ("model: !!python/object/apply:os.system [echo]\n", "not allowed"),
        ("a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\n" + "d: [" + "*c, " * 2000 + "*c]\n", "too many"),
        ("a: &a [*a]\n", "deeply nested"),
        ("<<: {model: x}\n", "plain words"),
        ("? [1, 2]\n: 3\n", "plain words"),
        ("a: " + "[" * 30 + "]" * 30 + "\n", "deeply nested"),
        ("a: " + "[{a: " * 50_000, "deeply nested"),  # unbounded, this takes hours
    ],
)
def test_what_is_no_recipe(tmp_path: Path, text: str, part: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError, match=part):
        read_recipe(path)


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no recipe file"):
        read_recipe(tmp_path / "missing.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"model: \xe9\n")
    with pytest.raises(UsageError, match="UTF-8"):
        read_recipe(tmp_path / "latin.yaml")
    (tmp_path / "large.yaml").write_text("# " + "x" * 300_000)
    with pytest.raises(UsageError, match="larger than"):
        read_recipe(tmp_path / "large.yaml")


def test_overrides() -> None:
    recipe = read_recipe(
        SMALL,
        ["data.text=docs/*.md", "train.what=scale+lora", "train.targets=[q_proj, k_proj]", "optimizer.lr=1e-3",
         "budget={tokens: 5_000}", "seed=3", "seed=4", "model=org/name: x", "gradient_checkpointing=true"],
    )  # fmt: skip
    assert recipe.data.text == "docs/*.md"
    assert recipe.train.what == "scale+lora" and recipe.train.targets == ["q_proj", "k_proj"]
    assert recipe.optimizer.lr == 1e-3 and recipe.budget.tokens == 5000 and recipe.seed == 4
    assert recipe.model == "org/name: x" and recipe.gradient_checkpointing
    assert read_recipe(SMALL, ["budget.steps=null", "budget.tokens=7"]).budget.tokens == 7
    for malformed in ("seed", "=3", "a..b=1"):
        with pytest.raises(UsageError, match="key=value"):
            read_recipe(SMALL, [malformed])


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"optimizer": {"lr": 1e-3}}, "has no effect when train.what is scale"),
        ({"optimizer": {"weight_decay": 0.1}}, "has no effect"),
        ({"train": {"what": "scale", "rank": 3}}, r"only with `what: scale\+lora` or `what: lora`"),
        (
            {"train": {"what": "everything"}},
            r"unknown what 'everything'; one of 'scale', 'scale\+lora', 'lora', 'full'",
        ),
        ({"control": True, "data": {"text": "t", "held_out": 0}}, "nothing can be compared"),
        ({"control": "untuched"}, "'untouched' or 'temperature'"),
        ({"control": []}, "at least 1"),
        ({"budget": None}, "budget: missing"),
        ({"budget": None, "stages": [{"train": {"what": "scale"}}]}, r"stages\.0\.budget: missing"),
        ({"stages": [{"optimizer": {"lr": 1.0}}]}, r"stages\.0: optimizer\.lr has no effect"),
        ({"stages": [{"objective": {"name": "match", "share": 1.0}}]}, r"stages\.0\.objective\.share: has no effect"),
        ({"stages": [{"train": {"what": "full"}}, {"train": {"what": "scale+lora"}}]}, "fixed weights"),
        (
            {"stages": [{"train": {"what": "scale+lora", "rank": rank}} for rank in (2, 3)]},
            "share it",
        ),
        ({"stages": [{"train": {"what": "lora"}}, {"train": {"what": "scale+lora"}}]}, "share it"),
        ({"stages": [{"train": {"what": "full"}}, {"train": {"what": "lora"}}]}, "cannot train lora and full"),
        ({"data": {"text": "t", "held_out": 0}, "evaluation": {"every": 3}}, "data.held_out is 0"),
        ({"data": {"text": "t", "held_out": 1.0}}, "less than 1"),
        ({"data": {"text": []}}, "at least one"),
        ({"data": {"text": "t", "sequence_length": 1}}, "greater than or equal to 2"),
        ({"train": {"layers": "5-3"}}, "'5-3'"),
        ({"train": {"layers": "a"}}, "'a'"),
        ({"optimizer": {"warmup": 1.5}}, "1.5"),
        ({"optimizer": {"scale_lr": float("nan")}}, "finite|greater"),
        ({"budget": {}}, "exactly one"),
        ({"seed": True}, "integer"),
    ],
)
def test_options_that_do_nothing_or_make_no_sense(change: dict[str, Any], part: str) -> None:
    if change.get("train", {}).get("what", "scale") == "scale" and "train" in change:
        change = {**change, "train": {"what": "scale", **change["train"]}}
    with pytest.raises(RecipeError, match=part):
        read_recipe({**SMALL, **change})


def test_stages_say_what_is_different() -> None:
    recipe = read_recipe(
        {
            **SMALL,
            "train": {"what": "scale+lora", "rank": 4},
            "optimizer": {"lr": 1e-3, "scale_lr": 0.1},
            "stages": [
                {"name": "layers", "train": {"what": "scale"}, "objective": {"name": "match"}},
                {"data": {"sequence_length": 64}, "budget": {"tokens": 7}, "optimizer": {"lr": 1e-4}},
            ],
        }
    )
    first, second = recipe.stage_recipes()
    assert (first.train.what, first.objective.name, first.length.steps) == ("scale", "match", 1)
    assert first.optimizer.scale_lr == 0.1 and first.data.sequence_length == 1024
    assert second.train == recipe.train and second.objective.name == "next_token"
    assert (second.optimizer.lr, second.optimizer.scale_lr) == (1e-4, 0.1)
    assert second.length.tokens == 7 and second.length.steps is None
    assert (second.data.sequence_length, second.data.text) == (64, "t")
    assert [recipe.stage_name(number) for number in range(2)] == ["layers", "stage 2"]
    assert not first.stages


def test_stages_read_back(tmp_path: Path) -> None:
    recipe = read_recipe({**SMALL, "stages": [{"objective": {"name": "match"}}, {"budget": {"steps": 3}}]})
    (tmp_path / "r.yaml").write_text(dump_recipe(recipe))
    assert read_recipe(tmp_path / "r.yaml").stage_recipes() == recipe.stage_recipes()


def test_layers() -> None:
    def layers(value: Any) -> list[int]:
        return read_recipe({**SMALL, "train": {"what": "scale", "layers": value}}).train.chosen_layers(4)

    assert layers("all") == [0, 1, 2, 3]
    assert layers("0-1, 3") == [0, 1, 3]
    assert layers([2, 2, 0]) == [0, 2]


@pytest.mark.parametrize("name", [recipe.name for recipe in shipped_files("recipes")])
def test_dumped_recipes_read_back_the_same(name: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(shipped_file("recipes", name).text)
    recipe = read_recipe(path)
    path.write_text(dump_recipe(recipe))
    again = read_recipe(path)
    assert again == recipe and dump_recipe(again) == dump_recipe(recipe)


def test_shipped_recipes() -> None:
    names = {recipe.name for recipe in shipped_files("recipes")}
    assert {
        "ssmax-scale",
        "ssmax-lora",
        "ssmax-recall",
        "recall-extend",
        "ssmax-full-cpt",
        "ssmax-from-paper-start",
        "distill",
        "extend-context",
        "screening-recover",
        "screening-unit",
        "tiny",
    } <= names
    for recipe in shipped_files("recipes"):
        header = recipe.text.split("\n\n")[0]
        assert "# Cost:" in header and recipe.summary.endswith(".")
    with pytest.raises(UsageError, match="did you mean 'ssmax-scale'"):
        shipped_file("recipes", "ssmax-scal")


def test_json_schema_names_every_key() -> None:
    schema = json.dumps(json_schema())
    assert '"additionalProperties": false' in schema
    assert all(f'"{name}"' in schema for name in Recipe.model_fields)
    assert all(f'"{key}"' in schema for key in ("scale_lr", "rank", "temperature", "held_out", "accumulation"))


def test_the_schema_that_ships_is_current() -> None:
    """After a change: make reference."""
    shipped = json.loads((ROOT / "recipes" / "schema.json").read_text())
    assert shipped == json_schema()


def test_the_reference_names_every_key() -> None:
    text = reference(Recipe)
    for model in (Recipe, *Recipe.model_fields.values()):
        for own in [model] if model is Recipe else models_in(model.annotation):
            for key in own.model_fields:
                assert key in TAGS or f"| `{key}` |" in text, key


def test_the_guide_says_when_to_use_each_recipe() -> None:
    text = (ROOT / "docs" / "guide" / "finetune.md").read_text()
    for recipe in shipped_files("recipes"):
        assert f"`{recipe.name}`" in text, "when to use it"


def test_items_of_lists_are_set(tmp_path: Path) -> None:
    stages = [{"budget": {"steps": 1}}, {"train": {"what": "scale"}, "budget": {"steps": 2}}]
    recipe = read_recipe({**SMALL, "stages": stages}, ["stages.1.budget.steps=5", "stages.0.optimizer.scale_lr=0.5"])
    first, second = recipe.stage_recipes()
    assert first.optimizer.scale_lr == 0.5 and second.length.steps == 5
    for override in ("stages.2.budget.steps=1", "stages.x.budget.steps=1"):
        with pytest.raises(UsageError, match="not an item of a list of 2"):
            read_recipe({**SMALL, "stages": stages}, [override])


def test_where_values_come_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(
        "model: m\noutput: o\ndata:\n  text: t\n  held_out: 0.3\nseed: 1\n"
        "stages:\n  - budget: {steps: 3}\n  - budget: {steps: 4}\n"
    )
    monkeypatch.setenv("SURGERY_SET", "seed=2 optimizer.scale_lr=0.5 data.text='a b'")
    groups = [
        ("SURGERY_SET", environment_overrides()),
        ("--set", ["optimizer.scale_lr=0.25", "stages.1.budget.steps=9"]),
    ]
    found = {item.key: (item.value, item.origin) for item in explain_recipe(path, groups)}
    assert found["model"] == ("m", "r.yaml:1")
    assert found["data.held_out"] == (0.3, "r.yaml:5")
    assert found["data.text"] == ("a b", "SURGERY_SET") and found["seed"] == (2, "SURGERY_SET")
    assert found["optimizer.scale_lr"] == (0.25, "--set")
    assert found["optimizer.clip"] == (1.0, "default")
    assert found["stages.0.budget.steps"] == (3, "r.yaml:8") and found["stages.1.budget.steps"] == (9, "--set")
    assert "optimizer.lr" not in found, "it would have no effect"
    monkeypatch.setenv("SURGERY_SET", "seed='2")
    with pytest.raises(UsageError, match="SURGERY_SET: No closing quotation"):
        environment_overrides()
