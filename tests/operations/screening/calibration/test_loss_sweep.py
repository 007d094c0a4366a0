"""Sweeping a tiny model: one look, several choices, each measured."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from surgery.conversion import convert
from surgery.data import read_documents
from surgery.errors import PlanRefusedError, UsageError
from surgery.evaluation.held_out_passages import cut_from_start
from surgery.evaluation.loss.token_losses import token_losses
from surgery.loading import load_model, load_tokenizer, operations_off
from surgery.operations.screening.calibration import CalibrationSettings, Sweep, sweep
from tests.anatomy.test_probe import tiny
from tests.families import _MOE
from tests.tokenizers import save_tiny_tokenizer

SETTINGS = CalibrationSettings(save="keys", lengths=(32, 64), observe=4, hold_out=2, rows=24)
ALLOWED = (0.001, 0.02, 0.3)


@pytest.fixture(scope="module")
def swept(source: Path, texts: Path) -> Sweep:
    return sweep(source, [texts], measure_on=[texts], allowed=ALLOWED, settings=SETTINGS)


def test_what_is_allowed_rejects_more_the_more_it_is(swept: Sweep) -> None:
    assert [point.allowed for point in swept.points] == list(ALLOWED)
    assert all(0 < point.estimated <= point.allowed for point in swept.points[1:])
    for place, tokens in enumerate((32, 64)):
        own = [point.lengths[place] for point in swept.points]
        assert {(one.tokens, one.passages) for one in own} == {(tokens, 2)}
        shares = [one.rejected for one in own]
        assert shares == sorted(shares) and shares[-1] > shares[0] + 0.1
        assert all(one.worst >= one.change for one in own)


def test_a_point_is_a_calibration_that_gives_what_was_measured(
    swept: Sweep, source: Path, texts: Path, tmp_path: Path
) -> None:
    point = swept.points[1]
    model = load_model(convert(source, "screening", calibration=point.calibration, output=tmp_path / "out").output)
    passages = cut_from_start(read_documents([texts]), load_tokenizer(source), (32, 64), 2)
    changes = []
    for passage in passages:
        tokens = torch.tensor([passage.tokens])
        with operations_off(model):
            before = token_losses(model, tokens).double().mean()
        changes.append(float(token_losses(model, tokens).double().mean() - before))
    assert changes == pytest.approx([text.change for text in point.calibration.guard], abs=1e-5)
    assert [one.change for one in point.lengths] == pytest.approx(
        [sum(changes[:2]) / 2, sum(changes[2:]) / 2], abs=1e-5
    )
    assert [one.worst for one in point.lengths] == pytest.approx([max(changes[:2]), max(changes[2:])], abs=1e-5)


def test_cache_and_blocks_of_a_length(swept: Sweep) -> None:
    assert all(one.blocks == 0 for point in swept.points for one in point.lengths)  # 64 tokens are one block
    for place, tokens in enumerate((32, 64)):
        shares = [point.lengths[place].cache for point in swept.points]
        assert all(0 < share <= 1 for share in shares) and len(swept.points[0].calibration.saved) == 3, tokens


def test_a_sweep_of_memory(source: Path, texts: Path) -> None:
    settings = CalibrationSettings.model_validate({**SETTINGS.model_dump(exclude_unset=True), "save": "memory"})
    found = sweep(source, [texts], allowed=ALLOWED, settings=settings)
    saved = [point.saved for point in found.points]
    assert saved == sorted(saved) and saved[-1] > 0.1
    for point in found.points:
        assert point.estimated <= point.allowed
        assert point.lengths[1].cache == pytest.approx(1 - point.saved)
        assert {one["tokens"] for one in point.calibration.saved} == {64, 4096, 16384, 65536}


def test_without_other_text_what_is_held_out_is_measured(source: Path, texts: Path) -> None:
    found = sweep(source, [texts], allowed=(0.02,), settings=SETTINGS)
    assert not found.other_text
    assert sum(text["held_out"] for text in found.texts) == len(found.points[0].calibration.guard) == 3


@pytest.mark.slow
def test_an_unverified_family_is_swept_where_that_is_allowed(texts: Path, tmp_path: Path) -> None:
    unknown = tiny(tmp_path / "laguna", "laguna", head_dim=8, **_MOE)
    save_tiny_tokenizer(unknown)
    with pytest.raises(PlanRefusedError, match="'laguna' is not supported"):
        sweep(unknown, [texts], allowed=(0.02,), settings=SETTINGS)
    found = sweep(unknown, [texts], allowed=(0.02,), settings=SETTINGS, allow_unverified=True)
    out = convert(
        unknown, "screening", calibration=found.points[0].calibration, output=tmp_path / "out", allow_unverified=True
    )
    assert out.plan.source["model_type"] == "laguna"


def test_what_is_taken_to_measure_on_comes_from_all_texts_and_twice_from_none(source: Path, texts: Path) -> None:
    documents = read_documents([texts])
    passages = cut_from_start(documents, load_tokenizer(source), (32, 64), 5)
    assert [len(passage.tokens) for passage in passages] == [32] * 5 + [64] * 5
    assert (
        len({passage.document for passage in passages[:4]}) == len({passage.document for passage in passages[5:9]}) == 4
    )
    assert len({passage.tokens for passage in passages}) == 10
    assert passages[4].document == passages[0].document
    beginnings = {passage.tokens[:32] for passage in passages}
    assert len(beginnings) == 10  # a longer passage does not begin where a shorter one did
    with pytest.raises(UsageError, match="to measure on has"):
        cut_from_start(documents, load_tokenizer(source), (4096,), 1)


def test_what_was_converted_is_refused_before_the_text(source: Path, tmp_path: Path) -> None:
    """What it found could not be applied."""
    converted = convert(source, "ssmax", output=tmp_path / "out").output
    with pytest.raises(PlanRefusedError, match="converted already"):
        sweep(converted, [tmp_path / "no text"], allowed=ALLOWED, settings=SETTINGS)
    longer = convert(source, "rope", output=tmp_path / "longer").output
    with pytest.raises(UsageError, match="no text file matches"):  # in its config alone: still a plain model
        sweep(longer, [tmp_path / "no text"], allowed=ALLOWED, settings=SETTINGS)
