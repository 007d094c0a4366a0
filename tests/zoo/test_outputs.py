"""Outputs that were damaged since, and places where no output can be: noticed before any work, and in a status."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from surgery.checkpoint import INDEX_NAME
from surgery.checkpoint.record import PLAN_NAME
from surgery.errors import CheckpointError, UsageError
from surgery.zoo import outputs
from surgery.zoo.outputs import GONE, find_damage
from surgery.zoo.run import run_zoo
from surgery.zoo.zoo import open_zoo
from tests.anatomy.builders import bare_source
from tests.conversion.conftest import tree
from tests.zoo.conftest import MakeZoo, states, write_manifest

SHARD = "surgery-operations.safetensors"
DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "config": (lambda folder: (folder / "config.json").write_text("{}"), "config.json does not belong to"),
    "torn-config": (lambda folder: (folder / "config.json").write_text("{"), "config.json is not valid JSON"),
    "shard": (lambda folder: (folder / SHARD).unlink(), f"{SHARD}', missing"),
    "cut-shard": (lambda folder: (folder / SHARD).write_bytes((folder / SHARD).read_bytes()[:-3]), SHARD),
    "index": (lambda folder: (folder / INDEX_NAME).unlink(), "it is unknown which"),
    "code": (
        lambda folder: (folder / "modeling_surgery.py").unlink(),
        "'modeling_surgery.py' named in surgery/plan.json",
    ),
    "kept": (lambda folder: (folder / "tokenizer.json").unlink(), "'tokenizer.json' named in surgery/plan.json"),
    "torn-plan": (lambda folder: (folder / PLAN_NAME).write_text("{"), "plan.json is not valid JSON"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_output_is_made_again(kind: str, make_zoo: MakeZoo, tmp_path: Path) -> None:
    spoil, part = DAMAGE[kind]
    bare_source(tmp_path / "models" / "llama")
    (tmp_path / "models" / "llama" / "tokenizer.json").write_text("{}")
    zoo = make_zoo(["llama"], verify="none")
    run_zoo(zoo)
    output = zoo.output / "llama-ssmax"
    whole = tree(output)
    assert find_damage(output) is None
    spoil(output)
    (row,) = zoo.plan().rows
    assert (row.state, row.replaces_output) == ("ready", True) and row.reason.startswith("its output is damaged: ")
    assert part in row.reason, row.reason
    (item,) = zoo.summary()["items"]
    assert (item["state"], item["reason"], item["verdict"]) == ("waiting", row.reason, None)
    assert states(run_zoo(zoo)) == {"llama-ssmax": "done"} and tree(output) == whole
    assert zoo.summary()["items"][0]["reason"] == ""


def test_a_damaged_output_that_is_not_known_as_ours_any_more_is_left_alone(make_zoo: MakeZoo) -> None:
    zoo = make_zoo(["llama"], verify="none")
    run_zoo(zoo)
    shutil.rmtree(zoo.output / "llama-ssmax" / "surgery")
    (row,) = zoo.plan().rows
    assert row.state == "refused" and "damaged" in row.reason and "was not written by surgery" in row.reason


def test_an_output_that_was_deleted_is_noticed_by_status_too(make_zoo: MakeZoo) -> None:
    zoo = make_zoo(["llama", "qwen2"], verify="none")
    run_zoo(zoo)
    shutil.rmtree(zoo.output / "llama-ssmax")
    assert states(zoo.summary()) == {"llama-ssmax": "waiting", "qwen2-ssmax": "done"}
    assert zoo.summary()["items"][0]["reason"] == zoo.plan().rows[0].reason == GONE
    assert zoo.plan().rows[0].state == "ready"


def test_a_look_at_a_hundred_outputs_is_quick(make_zoo: MakeZoo) -> None:
    zoo = make_zoo(["llama"], verify="none")
    run_zoo(zoo)
    began = time.process_time()
    for _ in range(100):
        assert find_damage(zoo.output / "llama-ssmax") is None
    assert time.process_time() - began < 2


@pytest.mark.parametrize("inside", ["", "/deep/out"])
def test_an_output_within_a_model_is_refused_before_anything_is_written(inside: str, make_zoo: MakeZoo) -> None:
    folder = Path(make_zoo(["llama", "qwen2"]).items[0].source)
    before = tree(folder)
    with pytest.raises(UsageError, match=r"output: .* (is|lies inside) the model .*llama"):
        make_zoo(["llama", "qwen2"], output=f"models/llama{inside}")
    assert tree(folder) == before


@pytest.mark.parametrize(("output", "part"), [("zoo.yaml", "is a file, not a folder"), ("zoo.yaml/x", "would lie in")])
def test_an_output_that_is_a_file(output: str, part: str, make_zoo: MakeZoo) -> None:
    with pytest.raises(UsageError, match=part):
        make_zoo(["llama"], output=output)


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_an_output_where_nothing_can_be_written(make_zoo: MakeZoo, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CheckpointError, match=r"'/proc/zoo' cannot be written: '/proc' is not on a disk"):
        make_zoo(["llama"], output="/proc/zoo").plan()
    zoo = make_zoo(["llama"], verify="none")
    run_zoo(zoo)
    monkeypatch.setattr(outputs.os, "access", lambda place, mode: False)
    assert zoo.plan().rows[0].state == "done", "nothing is to be written"
    shutil.rmtree(zoo.output / "llama-ssmax")
    with pytest.raises(CheckpointError, match="is not writable"):
        zoo.plan()


def test_what_a_manifest_excludes(tmp_path: Path) -> None:
    for name in ("a", "b", "b-old", "c"):
        bare_source(tmp_path / "models" / name)

    def names(*exclude: str, path: str = "models/*") -> list[str]:
        manifest = write_manifest(tmp_path, models=[{"path": path, "exclude": list(exclude)}])
        return [item.name.removesuffix("-ssmax") for item in open_zoo(manifest).items]

    assert names("b") == ["a", "b-old", "c"]
    assert names("*-old", "models/[ac]") == ["b"]
    assert names("./models/b*", "no-such*") == ["a", "c"]
    assert names(str(tmp_path / "models" / "b"), path=str(tmp_path / "models" / "*")) == ["a", "b-old", "c"]
    with pytest.raises(UsageError, match=r"models\.0\.exclude: 'd' matches none of its folders"):
        names("d")
    with pytest.raises(UsageError, match="matches no folder that can be used: 4 are excluded"):
        names("*")
    with pytest.raises(UsageError, match="exclude: has no effect without a glob"):
        names("b", path="models/a")
    manifest = write_manifest(tmp_path, models=[
        {"path": "models/*", "exclude": ["b"]}, {"path": "models/b", "change": {"ssmax": {"form": "bias"}}},
    ])  # fmt: skip
    assert len(open_zoo(manifest).items) == 4
    manifest = write_manifest(tmp_path, output="models")
    with pytest.raises(UsageError, match="matches no folder that can be used: 4 lie in the output"):
        open_zoo(manifest)


def test_an_output_of_a_name_that_no_file_system_takes(tmp_path: Path) -> None:
    bare_source(tmp_path / "models" / "llama")
    with pytest.raises(UsageError, match="cannot exist: File name too long"):
        open_zoo(write_manifest(tmp_path, output="[" * 3000))
