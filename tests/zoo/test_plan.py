"""A plan shows costs, refusals and finished items before any work, and writes nothing."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from surgery.checkpoint import free_bytes
from surgery.conversion import make_plan
from surgery.conversion.plan import needed_bytes
from surgery.reporting.zoo import render_zoo_page
from surgery.zoo import plan as plan_module
from surgery.zoo.plan import LIGHT_BYTES, TORCH_BYTES, ZooPlan
from surgery.zoo.run import run_zoo
from tests.anatomy.builders import bare_source
from tests.checkpoint.builders import listing
from tests.zoo.conftest import BROKEN, MakeZoo


def states(plan: ZooPlan) -> dict[str, str]:
    return {row.item.name: row.state for row in plan.rows}


def test_costs_are_those_of_single_plans_and_nothing_is_written(make_zoo: MakeZoo, tmp_path: Path) -> None:
    zoo = make_zoo(placement="copy")
    before = listing(tmp_path)
    plan = zoo.plan()
    assert listing(tmp_path) == before
    assert set(states(plan).values()) == {"ready"} and len(plan.rows) == 4
    for row in plan.rows:
        prepared = make_plan(row.item.source, [{"name": "ssmax"}])
        assert row.disk == needed_bytes(prepared, "copy") and row.source_bytes == prepared.checkpoint.disk_bytes
        assert row.family == Path(row.item.source).name and row.memory == LIGHT_BYTES
    assert plan.disk == sum(row.disk or 0 for row in plan.rows)
    assert make_zoo(placement="link").plan().disk < plan.disk
    assert any("soft-capped" in warning for row in plan.rows for warning in row.warnings)


def test_each_broken_model_costs_one_row_with_its_reason(make_zoo: MakeZoo) -> None:
    plan = make_zoo(["llama"], broken=BROKEN).plan()
    assert states(plan).pop("llama-ssmax") == "ready"
    for row in plan.rows:
        if row.item.name != "llama-ssmax":
            part = BROKEN[Path(row.item.source).name.removeprefix("broken-")][1]
            assert row.state == "refused" and part in row.reason, (row.item.name, row.reason)


def test_an_error_that_nobody_foresaw_costs_one_row_too(make_zoo: MakeZoo, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(source: Path, operations: Any, **options: Any) -> Any:
        if source.name == "qwen2":
            raise ZeroDivisionError("oh")
        return make_plan(source, operations, **options)

    monkeypatch.setattr(plan_module, "make_plan", fail)
    plan = make_zoo().plan()
    assert states(plan)["qwen2-ssmax"] == "refused" and len(plan.of("ready")) == 3
    assert "unexpected error: ZeroDivisionError: oh" in plan.of("refused")[0].reason


def test_what_does_not_fit_is_refused_in_order(make_zoo: MakeZoo, tmp_path: Path) -> None:
    need = make_zoo(["llama", "qwen2", "qwen3"]).plan().rows[0].disk
    assert need is not None
    keep = free_bytes(tmp_path) - 2 * need - need // 2
    plan = make_zoo(["llama", "qwen2", "qwen3"], parallel={"keep_free": keep}).plan()
    # The disk is others' too: between the two looks at it some of them may have written.
    assert list(states(plan).values()) in (["ready", "ready", "refused"], ["ready", "refused", "refused"])
    assert "items before it leave" in plan.rows[-1].reason
    assert states(make_zoo(["llama"], limits={"disk": 1000}).plan())["llama-ssmax"] == "refused"


def test_memory_for_a_verification_is_known_before(make_zoo: MakeZoo) -> None:
    row = make_zoo(["llama"], verify="full").plan().rows[0]
    source = make_plan(row.item.source, [{"name": "ssmax"}]).checkpoint
    parameters, head = source.total_parameters, source.tensors["lm_head.weight"].shape[0]
    assert row.memory == TORCH_BYTES + 8 * parameters
    fewer = make_zoo(["llama"], verify={"layers": 1}).plan().rows[0]
    assert fewer.memory == TORCH_BYTES + 8 * (head + (parameters - head) // 4)
    refused = make_zoo(["llama"], verify="full", limits={"memory": "1 GB"}).plan().rows[0]
    assert refused.state == "refused" and "1.2 GB of memory, its limit is 1.0 GB" in refused.reason
    bounded = make_zoo(["llama"], verify="full", parallel={"memory": "1 GB"}).plan().rows[0]
    assert bounded.state == "refused" and "parallel.memory is 1.0 GB" in bounded.reason


def test_what_is_done_changed_or_unknown(make_zoo: MakeZoo, tmp_path: Path) -> None:
    zoo = make_zoo(["llama", "qwen2"], verify="none")
    run_zoo(zoo)
    assert set(states(zoo.plan()).values()) == {"done"}
    # The shelf moves, and the times change: the same source.
    shutil.copytree(tmp_path / "models", tmp_path / "shelf")
    moved = make_zoo(["llama", "qwen2"], verify="none", models=[{"path": "shelf/*"}])
    assert set(states(moved.plan()).values()) == {"done"}
    # Other operations, another verification: the output is not what is asked for.
    for change in ({"operations": [{"name": "ssmax", "form": "bias"}]}, {"verify": "files"}):
        changed = make_zoo(["llama", "qwen2"], **{"verify": "none", **change})
        plan = changed.plan()
        assert set(states(plan).values()) == {"refused"} and "the output is out of date" in plan.rows[0].reason
        assert {row.replaces_output for row in changed.plan(force=True).of("ready")} == {True}
    # An output that the ledger does not know.
    (tmp_path / "out" / "qwen3-ssmax").mkdir()
    (tmp_path / "out" / "qwen3-ssmax" / "precious").write_text("")
    plan = make_zoo(["llama", "qwen3"], verify="none").plan()
    assert states(plan)["qwen3-ssmax"] == "refused" and "not in the ledger" in plan.of("refused")[0].reason


def test_layers_that_cannot_be_verified_are_refused_before(make_zoo: MakeZoo) -> None:
    row = make_zoo(["llama"], verify={"layers": 99}).plan().rows[0]
    assert row.state == "refused" and row.reason == "verify: layers: 99: the model has 4 layers"
    last = [{"name": "ssmax", "layers": [3]}]
    row = make_zoo(["llama"], verify={"layers": 2}, operations=last).plan().rows[0]
    assert row.state == "refused" and "these layers have no operation; the first one is on layer 3" in row.reason
    assert make_zoo(["llama"], verify={"layers": 4}, operations=last).plan().rows[0].state == "ready"


def test_what_to_do_about_a_refusal_is_kept(make_zoo: MakeZoo, tmp_path: Path) -> None:
    folder = bare_source(tmp_path / "models" / "pickled")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    zoo = make_zoo([], verify="none")
    (row,) = zoo.plan().rows
    assert row.state == "refused" and "python -c" in row.hint and row.to_dict()["hint"] == row.hint
    assert run_zoo(zoo)["items"][0]["hint"] == row.hint == zoo.summary()["items"][0]["hint"]
    assert "python -c" in render_zoo_page(zoo.summary())


@pytest.mark.parametrize("where", ["config", "header", "weights", "beside"])
def test_a_source_that_changed_is_noticed(where: str, make_zoo: MakeZoo, tmp_path: Path) -> None:
    zoo = make_zoo(["llama"], verify="none")
    run_zoo(zoo)
    folder = tmp_path / "models" / "llama"
    if where == "config":
        (folder / "config.json").write_text((folder / "config.json").read_text().replace("8192", "4096"))
    elif where == "beside":
        (folder / "tokenizer.json").write_text("{}")
    else:
        path = folder / "model.safetensors"
        content = bytearray(path.read_bytes())
        if where == "header":
            content = bytearray(bytes(content).replace(b'"pt"', b'"tf"'))
        else:  # the middle of the last tensor
            content[-64 * 4 // 2 + 1] ^= 1
        path.write_bytes(content)
    assert states(make_zoo(["llama"], verify="none").plan()) == {"llama-ssmax": "refused"}


def test_a_hub_model_that_is_not_fetched_has_an_unknown_cost(
    make_zoo: MakeZoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    zoo = make_zoo(["llama"], models=[{"hub": "org/name"}, {"hub": "not an id"}])
    rows = zoo.plan().rows
    assert [row.state for row in rows] == ["ready", "refused"]
    assert rows[0].disk is None and "not downloaded" in rows[0].reason and "neither" in rows[1].reason


def test_a_hub_model_in_the_cache_is_planned_with_its_commit(
    make_zoo: MakeZoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    commit = "0" * 39 + "1"
    repository = tmp_path / "cache" / "models--org--name"
    snapshot = repository / "snapshots" / commit
    whole = bare_source(tmp_path / "whole")
    (repository / "blobs").mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    snapshot.mkdir(parents=True)
    for number, path in enumerate(sorted(whole.iterdir())):
        path.rename(repository / "blobs" / f"{number:040x}")
        (snapshot / path.name).symlink_to(Path("../../blobs") / f"{number:040x}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    zoo = make_zoo([], models=[{"hub": "org/name"}], verify="files")
    assert zoo.plan().rows[0].disk is not None
    (item,) = run_zoo(zoo)["items"]
    assert (item["state"], item["commit"], item["item"]) == ("done", commit, "name-ssmax")
    assert states(zoo.plan()) == {"name-ssmax": "done"}
    shutil.rmtree(tmp_path / "cache")  # cleaned up since: what is done stays done, and the plan says what it did not do
    (row,) = zoo.plan().rows
    assert row.state == "done" and "not compared" in row.reason
