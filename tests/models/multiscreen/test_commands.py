"""The commands that read a Multiscreen folder: inspect, verify, finetune, evaluate."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import surgery
from surgery.errors import UsageError
from surgery.models import ARCHITECTURES, new
from surgery.models.catalogue import own_model
from surgery.verification.checks import Verification
from tests.commands.conftest import surgery as surgery_command
from tests.tokenizers import write_texts

run_surgery = surgery_command  # the fixture
SHARD = "model.safetensors"


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("texts")
    write_texts(folder, documents=12, words=120)
    return folder


@pytest.fixture(scope="module")
def made(texts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "multiscreen"
    return new("multiscreen", folder, vocab_size=300, train_tokenizer=[str(texts)], psi=3, length=64).output


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "model"))


def change(folder: Path, name: str, value: Any) -> None:
    tensors = load_file(folder / SHARD)
    tensors[name] = torch.as_tensor(value, dtype=tensors[name].dtype).expand_as(tensors[name]).contiguous()
    save_file(tensors, folder / SHARD, {"format": "pt"})


def statuses(result: Verification) -> dict[str, str]:
    return {check.name: check.status for check in result.checks}


def test_every_architecture_has_a_recipe() -> None:
    """`surgery new` names it as the next step."""
    recipes = Path(__file__).parents[3] / "recipes"
    assert all((recipes / f"{name}-pretrain.yaml").is_file() for name in ARCHITECTURES)


def test_inspect_shows_what_the_heads_have_learned(folder: Path, run_surgery: Any) -> None:
    change(folder, "model.layers.1.tiles.log_window", [math.log(3), math.log(62), math.log(64.5)])
    change(folder, "model.layers.1.tiles.acceptance", [0.0, math.log(3), -math.log(3)])
    document = run_surgery("inspect", folder, "--json").document()
    assert document["family"] == "multiscreen" and len(document["layers"]) == 3
    assert document["layers"][1]["windows"] == pytest.approx([4, 63, 65.5])
    assert document["layers"][1]["least_similarity"] == pytest.approx([0.5, 0.25, 0.75])
    shown = run_surgery("inspect", folder).out
    assert "4 to 63" in shown and "1 of 3" in shown and "0.25 to 0.75" in shown


def test_a_new_model_is_verified(made: Path) -> None:
    found = statuses(surgery.verify(made, record=False))
    assert set(found.values()) == {"passed", "skipped"}
    assert [name for name, status in found.items() if status == "skipped"] == ["same logits: static cache"]
    assert len([name for name in found if name.startswith("same logits")]) == 8


@pytest.mark.fresh
@pytest.mark.slow  # a process that imports transformers
def test_it_loads_without_the_package(made: Path) -> None:
    found = statuses(surgery.verify(made, record=False))
    for name in ("loads without surgery, offline", "same logits without surgery", "tokenizer loads, nothing waits"):
        assert found[name] == "passed"


def spoil_number(folder: Path) -> None:
    change(folder, "model.layers.0.tiles.acceptance", math.nan)


def spoil_code(folder: Path) -> None:
    (folder / "tiles.py").write_text("raise SystemExit\n")


def spoil_record(folder: Path) -> None:
    made = json.loads((folder / "surgery/new.json").read_text())
    made["options"]["psi"] = 4
    (folder / "surgery/new.json").write_text(json.dumps(made))


@pytest.mark.parametrize(
    ("spoil", "check"),
    [(spoil_number, "numbers are finite"), (spoil_code, "code is this version's"), (spoil_record, "parameters")],
)
def test_a_broken_folder_fails(spoil: Any, check: str, folder: Path) -> None:
    spoil(folder)
    result = surgery.verify(folder, files_only=True)
    assert [one.name for one in result.failed] == [check]
    assert json.loads((folder / "surgery/verify.json").read_text())["runs"][-1]["passed"] is False


def test_a_wrong_key_fails(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every head accepts many keys while the presentations are compared, so that no wrong key is rejected unseen."""
    from surgery.models.multiscreen import modeling

    right = modeling._places

    def wrong(mask: Any, position_ids: Any, past: int, rows: Any) -> Any:
        places = right(mask, position_ids, past, rows)
        return places._replace(documents=torch.zeros_like(places.documents))  # padding and other documents are seen

    monkeypatch.setattr(modeling, "_places", wrong)
    failed = {check.name for check in surgery.verify(made, record=False).failed}
    assert {"same logits: packed", "same logits: left-padded"} <= failed


@pytest.mark.parametrize("given", [{"against": "x"}, {"layers": 1}, {"max_loss_increase": 0.1, "text": ["x"]}])
def test_nothing_can_be_compared_with_a_source(given: Any, made: Path) -> None:
    with pytest.raises(UsageError, match="was made from random weights, so it has no source"):
        surgery.verify(made, **given)


def test_the_plan_of_a_verification(made: Path, run_surgery: Any) -> None:
    plan = run_surgery("verify", made, "--dry-run", "--json").document()
    assert [step["what"].split()[0] for step in plan["steps"]] == ["read", "import", "load", "present"]
    assert len(run_surgery("verify", made, "--dry-run", "--files-only", "--json").document()["steps"]) == 1
    refused = run_surgery("verify", made, "--dry-run", "--layers", 1)
    assert refused.code == 2 and "has no source" in refused.err


def test_other_models_of_new_are_verified(tmp_path: Path) -> None:
    made = new("softmax", tmp_path / "softmax", vocab_size=50, layers=1, heads=2, width=32, length=64)
    found = statuses(surgery.verify(made.output, record=False))
    assert found["parameters"] == "passed" and "code is this version's" not in found
    assert {found[name] for name in found if name.startswith("same logits")} == {"passed"}


def test_pretraining_by_the_recipe(made: Path, texts: Path, tmp_path: Path) -> None:
    output = tmp_path / "trained"
    short = ("data.sequence_length=64", "budget.tokens=null", "budget.steps=6", "data.held_out=0.3")
    sets = [f"model={made}", f"data.text={texts}", f"output={output}", *short]
    result = surgery.finetune("multiscreen-pretrain", overrides=sets, device="cpu")
    assert result.held_out_loss_before is not None and result.held_out_loss_after is not None
    assert result.held_out_loss_after < result.held_out_loss_before
    assert {path.name for path in output.glob("*.py")} == own_model("multiscreen").code().keys()
    assert "failed" not in statuses(surgery.verify(output, files_only=True)).values()
    before, after = load_file(made / SHARD), load_file(output / f"trained-{SHARD}")
    assert not [name for name in before if torch.equal(before[name], after[name])]


def test_evaluate_names_the_part_that_does_not_apply(made: Path, texts: Path) -> None:
    parts: list[dict[str, Any]] = [{"kind": "loss", "length": 32, "documents": 2}, {"kind": "attention", "length": 32}]
    result = surgery.evaluate(made, text=texts, suite={"name": "own", "parts": parts})
    assert [section.kind for section in result.sections] == ["loss"]
    assert any("has no part attention" in warning for warning in result.warnings)
    with pytest.raises(UsageError, match="has no part attention"):
        surgery.evaluate(made, text=texts, suite={"name": "own", "parts": parts[1:]})
