"""Each check fails on its fault, and the other checks pass."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from surgery.anatomy.config_locks import unlock
from surgery.checkpoint import Checkpoint, load_json, open_checkpoint, sha256_json
from surgery.checkpoint.record import HISTORY_NAME
from surgery.conversion import PLAN_NAME, refresh
from surgery.conversion.plan import NEW_SHARD
from surgery.errors import CheckpointError
from surgery.loading import RunOptions, load_model, load_tokenizer, operation_modules
from surgery.operations.ssmax.modeling import SSMax
from surgery.runtime import VISIBLE_KEYS, attention, models
from surgery.verification import verify
from surgery.verification.behaviour import plain_logits
from surgery.verification.checks import bounded
from surgery.verification.fresh import FreshRequest, ask, judge
from tests.verification.test_verify import N, by_status

SCALE = "model.layers.0.self_attn.ssmax.scale"
OFF, STARTS = "operation off = source", "starts as the source"


@pytest.fixture
def failures(source: Path) -> Callable[[Path], set[str]]:
    """Names of the failed checks, without the checks of a fresh process."""
    return lambda folder: by_status(verify(folder, against=source, length=32), "failed")


def rewrite(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    content = load_json(path)
    change(content)
    path.write_text(json.dumps(content))


def poke(checkpoint: Checkpoint, tensor: str, data: bytes, offset: int = 0) -> None:
    """Overwrite bytes of a tensor where it lies."""
    info = checkpoint.tensors[tensor]
    raw = bytearray((checkpoint.folder / info.shard).read_bytes())
    begin = len(raw) - sum(i.nbytes for i in checkpoint.tensors.values() if i.shard == info.shard)
    before = sorted((i for i in checkpoint.tensors.values() if i.shard == info.shard), key=lambda i: i.begin)
    begin += sum(i.nbytes for i in before if i.begin < info.begin) + offset
    raw[begin : begin + len(data)] = data
    (checkpoint.folder / info.shard).write_bytes(raw)


def any_on(model: torch.nn.Module) -> bool:
    return any(module.enabled for module in operation_modules(model).values())


def test_a_flipped_bit_in_a_source_tensor(make_pair: Any, failures: Any) -> None:
    out = make_pair()
    poke(open_checkpoint(out), "model.layers.1.mlp.up_proj.weight", b"\x01", offset=3)
    found = failures(out)
    assert "source tensors byte for byte" in found
    assert found <= {"source tensors byte for byte", OFF, STARTS}


def test_the_last_byte_of_the_last_tensor_is_compared(make_pair: Any, failures: Any) -> None:
    out = make_pair()
    checkpoint = open_checkpoint(out)
    last = [name for name in checkpoint.tensors if "ssmax" not in name][-1]
    poke(checkpoint, last, b"\x7f", offset=checkpoint.tensors[last].nbytes - 1)
    assert "source tensors byte for byte" in failures(out)


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_a_scale_that_is_not_finite(make_pair: Any, failures: Any, value: str) -> None:
    import struct

    out = make_pair()
    poke(open_checkpoint(out), "model.layers.1.self_attn.ssmax.scale", struct.pack("<f", float(value)), offset=4)
    assert "new tensors complete and finite" in failures(out)


def test_a_scale_that_moved_without_a_training_is_not_the_start(make_pair: Any, source: Path, failures: Any) -> None:
    """Learned scales are no failure, but the equality at the start is no longer claimed."""
    import struct

    out = make_pair()
    poke(open_checkpoint(out), "model.layers.0.self_attn.ssmax.scale", struct.pack("<f", 0.5))
    assert failures(out) == set()
    (run,) = load_json(out / "surgery" / "verify.json")["runs"]
    (starts,) = [check for check in run["checks"] if check["name"] == STARTS]
    assert starts["status"] == "skipped" and starts["value"] > 0


def test_missing_new_tensors(make_pair: Any, failures: Any) -> None:
    out = make_pair()
    (out / NEW_SHARD).unlink()
    index = out / "model.safetensors.index.json"

    def drop(content: dict[str, Any]) -> None:
        content["weight_map"] = {name: shard for name, shard in content["weight_map"].items() if shard != NEW_SHARD}

    rewrite(index, drop)
    assert failures(out) == {"new tensors complete and finite", "loads"}


def test_a_shard_that_is_gone_is_an_error_of_the_folder(make_pair: Any, failures: Any) -> None:
    out = make_pair()
    (out / NEW_SHARD).unlink()
    with pytest.raises(CheckpointError, match=NEW_SHARD):
        failures(out)


def test_a_changed_modelling_file(make_pair: Any, failures: Any) -> None:
    out = make_pair()
    with (out / "modeling_surgery.py").open("a") as file:
        file.write("# harmless\n")
    assert failures(out) == {"code is this version's"}
    for remove in (False, True):
        if remove:
            (out / "modeling_surgery.py").unlink()
        (check,) = verify(out, files_only=True).failed
        assert check.name == "code is this version's" and "`surgery refresh`" in check.detail
    assert failures(out) == {"code is this version's"}
    refresh(out)
    assert not verify(out, files_only=True).failed


def test_an_edited_plan(make_pair: Any, failures: Any) -> None:
    out = make_pair()
    rewrite(out / PLAN_NAME, lambda plan: plan["operations"][0].update(reference_length=63))
    assert "config.json carries the plan" in failures(out)


def test_a_plan_with_a_hash_of_its_own(make_pair: Any, failures: Any) -> None:
    out = make_pair()

    def edit(plan: dict[str, Any]) -> None:
        plan["operations"][0]["reference_length"] = 63
        plan["hash"] = sha256_json({name: value for name, value in plan.items() if name != "hash"})

    rewrite(out / PLAN_NAME, edit)
    assert "config.json carries the plan" in failures(out)


@pytest.mark.parametrize("change", [{"reference_length": 63}, {"heads": [0, 1, 2, 3]}, {"form": "paper"}])
def test_operations_edited_in_the_config(make_pair: Any, failures: Any, change: dict[str, Any]) -> None:
    out = make_pair()
    rewrite(out / "config.json", lambda config: config["surgery"]["operations"][0].update(change))
    assert "config.json carries the plan" in failures(out)


def test_another_file_that_changed_or_is_gone(make_pair: Any, failures: Any) -> None:
    out = make_pair()
    with (out / "generation_config.json").open("a") as file:
        file.write("\n")
    assert failures(out) == {"other files byte for byte"}
    (out / "generation_config.json").unlink()
    assert failures(out) == {"other files byte for byte"}


def test_weights_that_were_trained_are_skipped_not_failed(make_pair: Any, source: Path, failures: Any) -> None:
    out = make_pair()
    poke(open_checkpoint(out), "model.layers.1.mlp.up_proj.weight", b"\x01", offset=2)
    merge = {"step": "merge", "trained": "scale+lora"}
    (out / HISTORY_NAME).write_text(json.dumps({"entries": [{"trained": "full", "tokens": 5}, merge]}))
    assert failures(out) == set()
    card = (out / "README.md").read_text()
    assert "What was trained" in card and "full: 5 tokens" in card
    assert "- scale+lora, by merge" in card and "None" not in card


def test_what_the_source_config_says_counts(make_pair: Any, failures: Any) -> None:
    """The operated model must be the source's in everything else: here another RoPE."""
    out = make_pair()
    rewrite(
        out / "config.json", lambda config: config.update(rope_parameters={"rope_type": "default", "rope_theta": 9.0})
    )
    assert {OFF, STARTS} <= failures(out)


COUNT = models.count_visible_keys


def _no_mask(length: int, device: Any, attention_mask: Any = None, **given: Any) -> Any:
    return COUNT(length, device, None, **given)


def _no_cache(*arguments: Any, **given: Any) -> Any:
    return COUNT(*arguments, **{**given, "past_length": 0})


def _no_positions(*arguments: Any, **given: Any) -> Any:
    return COUNT(*arguments, **{**given, "position_ids": None})


def _one_short(*arguments: Any, **given: Any) -> Any:
    return COUNT(*arguments, **given) + (given.get("attention_mask") is not None)


@pytest.mark.parametrize(
    ("broken", "expected"),
    [
        (_no_mask, {"n: left-padded, no position_ids"}),
        (_no_cache, {"n: token by token", "n: static cache"}),
        (_no_positions, {"n: packed"}),
        (_one_short, {"n: left-padded", "n: right-padded", "n: batch of unequal rows", "n: left-padded with a cache"}),
    ],
)
def test_a_wrong_count_of_keys(
    make_pair: Any, failures: Any, monkeypatch: pytest.MonkeyPatch, broken: Any, expected: set[str]
) -> None:
    out = make_pair()
    monkeypatch.setattr(models, "count_visible_keys", broken)
    # As behind a serving engine: no layer counts its own mask, so that nothing makes up for the wrong count.
    monkeypatch.setattr(attention, "visible_keys_in_layer", lambda visible_keys, *_: visible_keys)
    found = failures(out)
    assert expected | {"n: multipliers"} <= found <= N


def test_an_n_whose_effect_drowns_in_rounding(make_pair: Any, failures: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of 0.0002 keys moves no logit by as much as the bound; the multipliers show it."""

    def slightly(*arguments: Any, **given: Any) -> Any:
        return COUNT(*arguments, **given) + 0.0002 * (given.get("attention_mask") is not None)

    out = make_pair()
    monkeypatch.setattr(models, "count_visible_keys", slightly)
    monkeypatch.setattr(attention, "visible_keys_in_layer", lambda visible_keys, *_: visible_keys)
    assert failures(out) == {"n: multipliers"}


def test_rounding_is_measured_where_a_presentation_differs_more_than_the_source(
    make_pair: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A difference is forgiven up to twice the rounding of the model itself, and no further."""
    from surgery.verification import behaviour

    model = load_model(make_pair(form="paper"), RunOptions(dtype="float32"))
    tokens = torch.arange(3, 35)[None]
    rounding = behaviour.rounding_error(model, tokens)
    assert 0.0 < rounding < 1e-4
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    monkeypatch.setattr(behaviour, "rounding_error", lambda *_: 5e-4)
    monkeypatch.setattr(behaviour, "multiplier_checks", lambda *_: [])
    for difference, status in ((9e-5, "passed"), (9e-4, "passed"), (1.1e-3, "failed")):
        found = {"packed": difference}
        monkeypatch.setattr(
            behaviour, "presentation_differences", lambda *_, found=found: found if any_on(model) else {"packed": 0.0}
        )
        (check,) = behaviour.presentation_checks(model, tokens, {})
        assert check.status == status
        assert ("rounding alone" in check.detail) == (difference > 1e-4)


RUNS_ON = {"packed": "its state runs on"}


@pytest.mark.parametrize(
    ("own", "found", "breaks", "of_n", "status"),
    [
        (0.1, 5.0, RUNS_ON, "passed", "skipped"),
        (0.1, 0.15, RUNS_ON, "passed", "passed"),
        (0.1, 5.0, RUNS_ON, "failed", "failed"),
        (0.1, 5.0, RUNS_ON, None, "failed"),  # nothing was said of n
        (0.1, 5.0, {}, "passed", "failed"),  # not known of the family
        (0.0, 5.0, RUNS_ON, "passed", "failed"),  # known, but not so here
        (0.1, float("nan"), RUNS_ON, "passed", "failed"),
    ],
)
def test_a_presentation_in_which_the_family_itself_differs(
    make_pair: Any,
    monkeypatch: pytest.MonkeyPatch,
    own: float,
    found: float,
    breaks: dict[str, str],
    of_n: Any,
    status: str,
) -> None:
    from surgery.verification import behaviour
    from surgery.verification.checks import Check

    model = load_model(make_pair(), RunOptions(dtype="float32"))
    said = [Check("n: multipliers", of_n, "")] if of_n else []
    monkeypatch.setattr(behaviour, "multiplier_checks", lambda *_: said)
    monkeypatch.setattr(behaviour, "presentation_differences", lambda *_: {"packed": found if any_on(model) else own})
    check = behaviour.presentation_checks(model, torch.arange(3, 35)[None], breaks)[-1]
    assert check.status == status
    assert (status == "skipped") == ("its state runs on" in check.detail)


def test_a_multiplier_that_one_backend_loses(make_pair: Any, failures: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    operated = attention.operated_attention

    def loses(name: str, backend: Any, eager: Any, module: Any, *arguments: Any, **given: Any) -> Any:
        if name == "eager":
            given.pop(VISIBLE_KEYS)
            return backend(module, *arguments, **given)
        return operated(name, backend, eager, module, *arguments, **given)

    monkeypatch.setattr(attention, "operated_attention", loses)
    assert failures(make_pair()) == {"n: sdpa = eager", "n: multipliers"}


def test_a_scale_that_has_no_effect(make_pair: Any, failures: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    forward = SSMax.forward
    monkeypatch.setattr(SSMax, "forward", lambda *given: forward(*given) * 0 + 1)
    assert failures(make_pair()) == {"ablation"}


def test_an_operation_that_cannot_be_switched_off(
    make_pair: Any, failures: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SSMax, "enabled", property(lambda _: True, lambda *_: None), raising=False)
    assert failures(make_pair(form="paper")) == {OFF}


def test_a_nan_is_never_within_a_bound() -> None:
    assert bounded("x", float("nan"), 1.0).status == "failed"
    assert bounded("x", 1.0, 1.0).status == "passed"


# ----------------------------------------------------------------------------------- what only a fresh process sees


def test_a_fresh_process_finds_what_this_one_cannot(make_pair: Any, source: Path, tmp_path: Path) -> None:
    """Faults in three folders, asked of one process since starting it takes the time; each is found by its check."""
    import torch

    unlocked = make_pair()
    dependent, scaled = (Path(shutil.copytree(unlocked, tmp_path / name)) for name in ("dependent", "scaled"))

    opened = unlock(load_json(unlocked / "config.json"))
    opened["surgery"]["locks"] = {}
    (unlocked / "config.json").write_text(json.dumps(opened))
    other = json.loads((unlocked / "tokenizer.json").read_text())
    vocabulary = other["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (unlocked / "tokenizer.json").write_text(json.dumps(other))

    code = (dependent / "surgery_models.py").read_text()
    (dependent / "surgery_models.py").write_text(code.replace("import torch\n", "import surgery\nimport torch\n", 1))
    (dependent / "tokenizer.json").write_text("{}")

    code = (scaled / "surgery_ssmax_multiplier.py").read_text()
    (scaled / "surgery_ssmax_multiplier.py").write_text(code.replace("log_reference) + 1.0", "log_reference) + 1.5", 1))

    tokens = list(range(3, 35))
    text = "a bad text"
    requests = [
        FreshRequest(folder, "LlamaForCausalLM", "sdpa", tokens, text, [SCALE], has_tokenizer=True)
        for folder in (unlocked, dependent, scaled)
    ]
    here = plain_logits(load_model(source), torch.tensor([tokens]))
    reference = load_tokenizer(source)(text)["input_ids"]
    failed = [
        {check.name: check.detail for check in judge(request, *answer, here, reference) if check.status == "failed"}
        for request, answer in zip(requests, ask(requests), strict=True)
    ]
    assert "silently with default, sdpa, eager" in failed[0].pop("stock classes refuse it")
    assert "those of the source's tokenizer" in failed[0].pop("tokenizer loads, nothing waits")
    assert "surgery is not installed" in failed[1].pop("loads without surgery, offline")
    assert "trusted" in failed[1].pop("tokenizer loads, nothing waits")
    assert failed[0] == failed[1] == {}
    assert set(failed[2]) == {"same logits without surgery"}
