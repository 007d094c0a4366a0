"""SSMax: where it starts, where it is the identity, which tensors it adds."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from surgery.anatomy import FAMILIES, Anatomy, read_anatomy
from surgery.checkpoint import open_checkpoint
from surgery.conversion.options import parse_operation
from surgery.errors import PlanRefusedError, UsageError
from surgery.operations.ssmax import FORMS
from surgery.operations.ssmax.operation import mean_log
from tests.anatomy.builders import LAYERS, SIZES_OF, bare_source
from tests.operations.test_options import SSMAX, resolve


@pytest.fixture(scope="module")
def anatomy(tmp_path_factory: pytest.TempPathFactory) -> Anatomy:
    return read_anatomy(open_checkpoint(bare_source(tmp_path_factory.mktemp("bare") / "model")))


@given(st.integers(2, 20_000))
def test_mean_log_is_the_direct_mean(length: int) -> None:
    direct = math.fsum(math.log(n) for n in range(1, length + 1)) / length
    assert mean_log(length) == pytest.approx(direct, rel=1e-12)


@pytest.mark.parametrize(
    ("reference", "printed"), [(1024, "0.1685"), (2048, "0.151"), (4096, "0.137"), (8192, "0.125")]
)
def test_paper_starts_at_the_inverse_of_the_mean_log(anatomy: Anatomy, reference: int, printed: str) -> None:
    start = resolve(anatomy, form="paper", reference_length=reference).start["scale"]
    decimals = len(printed.partition(".")[2])
    assert f"{start:.{decimals}f}" == printed


def test_the_reference_length_is_the_trained_one_unless_given(anatomy: Anatomy) -> None:
    assert resolve(anatomy).reference_length == anatomy.trained_length == 8192
    assert resolve(anatomy, reference_length=77).reference_length == 77


def test_a_constant_has_no_reference_length(anatomy: Anatomy) -> None:
    resolved = resolve(anatomy, form="constant")
    assert resolved.reference_length is None and "N =" not in SSMAX.describe(resolved)
    with pytest.raises(UsageError, match="leave reference_length out"):
        resolve(anatomy, form="constant", reference_length=77)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"form": "anchored"}, "everywhere"),
        ({"form": "bias"}, "everywhere"),
        ({"form": "logn"}, "n <= 8192"),
        ({"form": "logn", "reference_length": 50}, "n <= 50"),
        ({"form": "constant"}, "everywhere"),
        ({"form": "constant", "start": {"bias": 1.01}}, None),
        ({"form": "paper"}, None),
        ({"form": "anchored", "start": {"scale": 0.01}}, None),
        ({"form": "bias", "start": {"scale": 0.01}}, None),
        ({"form": "bias", "start": {"bias": 1.01}}, None),
        ({"form": "paper", "start": {"scale": 0.0}}, None),
    ],
)
def test_identity_is_stated_where_it_holds_and_only_there(
    anatomy: Anatomy, options: dict[str, Any], expected: str | None
) -> None:
    """The statement against the multiplier that the travelling code computes."""
    import torch

    from surgery.operations.ssmax.modeling import SSMax

    resolved = resolve(anatomy, **options)
    assert SSMAX.identity(resolved) == expected
    module = SSMax(resolved.resolved(), num_heads=anatomy.heads)
    n = torch.arange(1, 20_000, dtype=torch.float32)[None]
    with torch.no_grad():
        one = (module(n)[0, 0, :, 0] == 1.0).tolist()
    limit = {None: 0, "everywhere": len(one)}.get(expected, resolved.reference_length)
    assert all(one[:limit])
    assert not any(one[limit + 1 :]) or expected is None
    assert (expected is not None) or not all(one)


def test_a_gain_of_one_is_the_identity_too(anatomy: Anatomy) -> None:
    assert SSMAX.identity(resolve(anatomy, form="none", outputs="gain")) == "everywhere"
    assert SSMAX.identity(resolve(anatomy, form="logn", outputs="gain")) == "n <= 8192"
    for form in ("none", "logn", "constant", "bias", "anchored"):
        assert SSMAX.identity(resolve(anatomy, form=form, outputs="gain", start={"gain": 1.01})) is None
    with pytest.raises(UsageError, match="changes nothing"):
        resolve(anatomy, form="none")


def test_without_gains_the_options_are_those_of_earlier_checkpoints(anatomy: Anatomy) -> None:
    assert "outputs" not in resolve(anatomy).resolved()
    assert resolve(anatomy, outputs="gain").resolved()["outputs"] == "gain"


def test_a_gain_multiplies_the_outputs_of_the_chosen_heads() -> None:
    import torch

    from surgery.operations.ssmax.modeling import SSMax

    module = SSMax(
        {"form": "none", "outputs": "gain", "reference_length": None, "heads": [0, 2], "start": {"gain": 1}}, 3
    )
    with torch.no_grad():
        module.gain.copy_(torch.tensor([0.5, 3.0]))
    output = torch.randn(2, 5, 3, 4, dtype=torch.bfloat16)
    found = module.scale_output(output)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found[..., 0, :], output[..., 0, :] / 2) and torch.equal(found[..., 1, :], output[..., 1, :])
    assert torch.equal(found[..., 2, :], (3 * output[..., 2, :].float()).bfloat16())


@pytest.mark.parametrize("outputs", ["unchanged", "gain"])
@pytest.mark.parametrize("form", sorted(FORMS))
def test_tensors_of_the_plan_are_the_parameters_of_the_module(anatomy: Anatomy, form: Any, outputs: str) -> None:
    from surgery.operations.ssmax.modeling import SSMax

    if (form, outputs) == ("none", "unchanged"):
        pytest.skip("it changes nothing, and is refused")
    resolved = resolve(anatomy, form=form, outputs=outputs, layers="1,3", heads="0-4")
    planned = SSMAX.tensors(resolved, anatomy)
    module = SSMax(resolved.resolved(), num_heads=anatomy.heads)
    expected = {
        f"model.layers.{layer}.self_attn.ssmax.{name}": (tuple(parameter.shape), parameter[0].item())
        for layer in (1, 3)
        for name, parameter in module.named_parameters()
    }
    assert {tensor.name: tensor.shape for tensor in planned} == {name: shape for name, (shape, _) in expected.items()}
    for tensor in planned:
        assert tensor.start == pytest.approx(expected[tensor.name][1], rel=1e-6)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_sliding_layers_are_skipped_with_the_window_as_reason(family: str, tmp_path: Path) -> None:
    row = FAMILIES[family]
    changes: dict[str, Any] = dict(SIZES_OF.get(family, {}))
    if row.sliding == "layer_types":
        changes["layer_types"] = ["full_attention", f"{row.local}_attention"] * (LAYERS // 2)
    if row.window is not None:
        changes |= {row.window: 16, **({row.window_gate: True} if row.window_gate else {})}
    anatomy = read_anatomy(open_checkpoint(bare_source(tmp_path / "model", family, **changes)))
    for layer in anatomy.layers:
        reason = SSMAX.reason_to_skip(layer, anatomy)
        assert (reason is None) == (layer.kind == "full" and not layer.scaled)
        assert reason is None or ("already scales" if layer.scaled else "16 keys") in reason


@pytest.fixture
def gemma(tmp_path: Path) -> Anatomy:
    """Layers 0 and 2 slide."""
    folder = bare_source(tmp_path / "model", "gemma3_text", sliding_window=16, sliding_window_pattern=2)
    return read_anatomy(open_checkpoint(folder))


def test_a_calibration_takes_layers_with_a_window_unless_told_otherwise(gemma: Anatomy) -> None:
    from surgery.operations.ssmax.calibration.calibration import resolved_options

    def layers(**given: Any) -> tuple[int, ...]:
        planned = SSMAX.resolve(parse_operation(SSMAX.uncalibrated({"name": "ssmax", **given})), gemma)
        calibrated = resolved_options(given, gemma)
        assert planned.layers == calibrated.layers
        return tuple(map(int, planned.layers))

    assert layers() == (0, 1, 2, 3)
    assert layers(layers="full") == (1, 3) and layers(layers="sliding") == (0, 2) and layers(layers="1") == (1,)
    assert resolve(gemma).layers == resolve(gemma, form="constant").layers == (1, 3), "without a calibration"


@pytest.mark.parametrize(("form", "saturates"), [("constant", False), ("none", False), ("bias", True)])
def test_only_what_depends_on_n_saturates_in_a_window(gemma: Anatomy, form: str, saturates: bool) -> None:
    resolved = resolve(gemma, form=form, outputs="gain", layers="all")
    assert any("n saturates" in warning for warning in SSMAX.warnings(resolved, gemma)) is saturates


def test_warnings_name_windows_caps_and_a_changed_start(tmp_path: Path) -> None:
    folder = bare_source(tmp_path / "model", "gemma2", sliding_window=16)
    anatomy = read_anatomy(open_checkpoint(folder))
    said = " / ".join(SSMAX.warnings(resolve(anatomy, form="paper", layers="all"), anatomy))
    assert f"{LAYERS // 2} of the chosen layers slide" in said and "window of 16 keys" in said
    assert "soft-capped at 50" in said and "until it is trained" in said
    assert "slide" not in " ".join(SSMAX.warnings(resolve(anatomy), anatomy))


@pytest.mark.parametrize(
    ("family", "changes", "layers", "most"),
    [
        ("gemma2", {"sliding_window": 16}, "sliding", 16),
        ("gemma2", {"sliding_window": 16}, "all", 8192),
        ("gemma2", {"sliding_window": 16}, "full", 8192),
        ("llama4_text", {"attention_chunk_size": 512}, "chunked", 512),
        ("llama4_text", {"attention_chunk_size": 512, "attn_temperature_tuning": False}, "all", 8192),
    ],
)
def test_n_is_no_greater_than_what_the_layers_let_a_query_see(
    family: str, changes: dict[str, Any], layers: str, most: int, tmp_path: Path
) -> None:
    anatomy = read_anatomy(open_checkpoint(bare_source(tmp_path / "model", family, **changes)))
    assert resolve(anatomy, layers=layers).reference_length == most
    assert resolve(anatomy, layers=layers, reference_length=77).reference_length == 77
    if most == 8192:
        assert resolve(anatomy, form="logn", layers=layers).reference_length == most
        return
    for asked in ({}, {"reference_length": most}, {"reference_length": most + 1}):
        with pytest.raises(PlanRefusedError, match=f"has no effect: .* sees at most {most} keys"):
            resolve(anatomy, form="logn", layers=layers, **asked)
    assert resolve(anatomy, form="logn", layers=layers, reference_length=most - 1).reference_length == most - 1


@pytest.mark.parametrize(
    ("layers", "why", "ways"),
    [
        ("full", "already scales the queries of this layer by the position", "--layers chunked or by number"),
        ("sliding", "every chunk of 512 keys", "--layers chunked or by number"),
    ],
)
def test_a_choice_that_finds_no_layer_says_which_would(layers: str, why: str, ways: str, tmp_path: Path) -> None:
    source = bare_source(tmp_path / "model", "llama4_text", attention_chunk_size=512)
    with pytest.raises(PlanRefusedError, match=why) as caught:
        resolve(read_anatomy(open_checkpoint(source)), layers=layers)
    assert caught.value.hint is not None and ways in caught.value.hint and "sliding" not in caught.value.hint
