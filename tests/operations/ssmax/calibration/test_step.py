"""The step of a calibration: the best change for its price, on losses that are known exactly."""

from __future__ import annotations

import math

import numpy as np
import pytest

from surgery.operations.ssmax.calibration import step as step_module
from surgery.operations.ssmax.calibration.gradients import RowGradients
from surgery.operations.ssmax.calibration.step import Evidence, bounded, form_columns
from surgery.operations.ssmax.options import SSMaxOptions

LAYERS, HEADS = 3, 4


def rows(count: int, seed: int = 0, noise: float = 0.3) -> list[RowGradients]:
    """Gradients that agree but for some noise."""
    generator = np.random.default_rng(seed)
    shape = (LAYERS, HEADS, 3)
    answers, text = generator.normal(0, 1, shape), generator.normal(0, 0.05, shape)
    return [
        RowGradients(
            answers + generator.normal(0, noise, shape), text + generator.normal(0, 0.05, shape), 100, 1.0, 1.0
        )
        for _ in range(count)
    ]


def columns_of(form: str, outputs: str = "unchanged") -> np.ndarray:
    reference = {"reference_length": 256} if form == "anchored" else {}
    return form_columns(SSMaxOptions.model_validate({"form": form, "outputs": outputs, **reference}), 7.0)


@pytest.mark.parametrize("outputs", ["unchanged", "gain"])
@pytest.mark.parametrize("form", ["constant", "anchored", "bias"])
@pytest.mark.parametrize("allowed", [0.01, 0.2])
def test_no_other_change_gains_more_for_the_same_loss(
    form: str, allowed: float, outputs: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(step_module, "SHARE_OF_WORTH", 2.0)  # every head, also one that loses
    columns = columns_of(form, outputs)
    evidence = Evidence([rows(20)], columns)
    numbers, gain = evidence.step(allowed)
    # Back to the numbers of the form: the rows of the columns give b, s and g.
    change = np.linalg.lstsq(columns, numbers.reshape(-1, 3).T, rcond=None)[0].T.reshape(evidence.answers.shape)
    assert change @ columns.T == pytest.approx(numbers, abs=1e-9)
    assert evidence.loss_change(change) == pytest.approx(allowed, rel=1e-3)
    assert gain == pytest.approx(-(evidence.answers * change).sum())
    generator = np.random.default_rng(1)
    for _ in range(200):
        other = change + generator.normal(0, 0.1 * np.abs(change).mean(), change.shape)
        # As dear as the step: scaled until its loss is the allowed one.
        low, high = 0.0, 4.0
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (low, middle) if evidence.loss_change(middle * other) > allowed else (middle, high)
        assert evidence.gain(low * other) <= gain + 1e-9


def test_the_fisher_information_is_that_of_one_token() -> None:
    """Gradients of 100 tokens each, drawn with a known covariance: its diagonal is found, and the damping."""
    generator = np.random.default_rng(0)
    deviation = np.array([0.5, 2.0, 1.0])
    text = generator.normal(0, deviation / math.sqrt(100), (4000, LAYERS, HEADS, 3))
    found = Evidence([[RowGradients(row, row, 100, 1.0, 1.0) for row in text]], np.eye(3)).fisher
    wanted = (1 + step_module.DAMPING) * deviation**2
    assert found[..., 0, 0] == pytest.approx(np.full((LAYERS, HEADS), wanted[0]), rel=0.1)
    assert found[..., 1, 1] == pytest.approx(np.full((LAYERS, HEADS), wanted[1]), rel=0.1)
    assert np.abs(found[..., 0, 1]).max() < 0.1


def test_noise_alone_moves_little() -> None:
    sure = Evidence([rows(20, noise=0.1)], columns_of("constant"))
    unsure = Evidence([rows(20, noise=20.0)], columns_of("constant"))
    assert np.abs(sure.answers).sum() > 3
    assert (unsure.answers == 0).mean() > 0.3  # entries within their noise


def test_heads_that_add_little_stay_exactly_where_they_are() -> None:
    answers = np.zeros((LAYERS, HEADS, 3))
    answers[0, 1, 0], answers[2, 3, 0], answers[1, 1, 0] = 5.0, 4.0, 0.1
    generator = np.random.default_rng(0)
    noisy = [
        RowGradients(answers * generator.uniform(0.9, 1.1), generator.normal(0, 0.1, answers.shape), 100, 1.0, 1.0)
        for _ in range(30)
    ]
    numbers, _ = Evidence([noisy], columns_of("constant")).step(0.05)
    moved = np.argwhere(numbers[..., 0] != 0)
    assert {(int(layer), int(head)) for layer, head in moved} == {(0, 1), (2, 3)}
    assert (numbers[..., 0][tuple(moved.T)] < 0).all() and (numbers[..., 1:] == 0).all()


@pytest.mark.parametrize("allowed", [-0.005, 0.01])
def test_leaving_heads_out_keeps_the_loss_and_nearly_all_of_the_gain(
    allowed: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A head that hardly helps the answers stays in where it takes back what the others cost the text."""
    evidence = Evidence([rows(20)], columns_of("constant", "gain"))
    numbers, gain = evidence.step(allowed)
    change = numbers @ np.linalg.pinv(columns_of("constant", "gain").T)
    loss = evidence.loss_change(change)
    assert allowed - 5e-3 < loss <= allowed  # a few heads of twelve are a coarse measure
    monkeypatch.setattr(step_module, "SHARE_OF_WORTH", 2.0)
    whole, most = evidence.step(loss)
    assert (numbers == 0).all(-1).sum() > (whole == 0).all(-1).sum()
    assert 0.9 * most < gain < most


def test_columns_of_a_form_are_its_multiplier() -> None:
    """m(n) = b + s ln n of the columns, for a number of each form, as its equation says."""
    n, reference = 3000.0, 256
    (anchored,) = columns_of("anchored").T
    assert anchored[0] + anchored[1] * math.log(n) == pytest.approx(math.log(n) - math.log(reference))
    level, slope, gain = columns_of("bias", "gain").T
    assert (level[0] + level[1] * math.log(n), slope[0] + slope[1] * math.exp(0) * 7.0) == pytest.approx((1, 0))
    assert level[2] == slope[2] == 0 and gain.tolist() == [0, 0, 1]
    assert columns_of("constant").tolist() == [[1.0], [0.0], [0.0]]
    assert columns_of("none", "gain").tolist() == [[0.0], [0.0], [1.0]]


def test_a_step_ends_where_a_multiplier_reaches_its_bound() -> None:
    longest = 1000
    before = np.array([1.0, 0.0, 1.0]) * np.ones((1, 4, 1))
    change = np.array([[[0.1, 0.01, 0.2], [3.0, 0.0, 0.1], [0.0, -0.4, 3.0], [-0.2, 0.1, -3.0]]])
    found = bounded(before, before + change, longest)
    ends = np.log([step_module.FEW, step_module.BEYOND * longest])
    multipliers = found[..., :1] + found[..., 1:2] * ends
    low, high = step_module.BOUNDS
    assert found[0, :, 2] == pytest.approx([1.2, 1.1, high, low])
    assert (multipliers > low - 1e-9).all() and (multipliers < high + 1e-9).all()
    assert found[0, 0] == pytest.approx(before[0, 0] + change[0, 0])  # within the bounds: as it was
    assert multipliers[0, 1] == pytest.approx([high, high])
    assert multipliers[0, 2, 1] == pytest.approx(low)
    shares = (found - before)[0] / np.where(change[0] == 0, 1, change[0])
    assert shares[2, 1] == pytest.approx(0.4 / (0.4 * ends[1]))  # the direction of a head's change stays
    assert shares[3, 0] == pytest.approx(shares[3, 1])
