"""What a verification repeats: the default and the thorough one have the same checks; a plan needs no torch."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from surgery.commands import main
from surgery.loading import RunOptions, load_model
from surgery.verification import behaviour, plan_verification, verify
from surgery.verification.presentations import PRESENTATIONS
from tests.conversion.conftest import tree


def test_thorough_has_the_same_checks_and_repeats_more(make_pair: Callable[..., Path], source: Path) -> None:
    out = make_pair()
    found: list[list[str]] = []
    repeated: list[int] = []
    seen: list[str] = []
    for thorough in (False, True):
        seen.clear()
        result = verify(
            out, against=source, thorough=thorough, record=False, on_progress=lambda what, *_: seen.append(what)
        )
        assert not result.failed
        found.append([check.name for check in result.checks])
        repeated.append(sum(what.startswith("n: ") for what in seen))
    assert found[0] == found[1]
    assert repeated[1] == repeated[0] + len(PRESENTATIONS)


@pytest.mark.parametrize(("difference", "rounds"), [(9e-5, 1), (3e-4, 2)])
def test_the_source_is_measured_where_the_bound_depends_on_it(
    make_pair: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, difference: float, rounds: int
) -> None:
    """A difference of 3e-4 passes because the source has 2e-4 itself; one of 9e-5 passes whatever the source has."""
    model = load_model(make_pair(), RunOptions(dtype="float32"))
    asked: list[float] = []

    def differences(*_: object) -> dict[str, float]:
        asked.append(2e-4 if asked else difference)
        return {"packed": asked[-1]}

    monkeypatch.setattr(behaviour, "presentation_differences", differences)
    monkeypatch.setattr(behaviour, "multiplier_checks", lambda *_: [])
    (check,) = behaviour.presentation_checks(model, torch.arange(3, 35)[None], {}, measures_source=False)
    assert check.status == "passed" and len(asked) == rounds


def test_the_bar_never_passes_its_end(make_pair: Callable[..., Path], source: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    verify(make_pair(), against=source, record=False, on_progress=lambda *given: seen.append(given))
    assert all(done <= total for _, done, total in seen)
    assert sum(what.startswith("n: ") for what, *_ in seen) >= 2 * len(PRESENTATIONS)


def test_a_plan_runs_nothing(make_pair: Callable[..., Path], source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = make_pair()
    before = tree(out)
    with pytest.raises(SystemExit, match=r"^0$"):
        main(["verify", str(out), "--against", str(source), "--dry-run"])
    said = capsys.readouterr().out
    assert f"Next: surgery verify {out} --against {source}\n" in said
    assert "change each of 3 layers" in said and " on this processor" in said
    assert tree(out) == before
    code = (
        "import sys; from surgery.verification.workload import plan_verification; plan_verification(sys.argv[1]);"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(out)], check=True)


def test_a_plan_says_more_time_for_more_work(make_pair: Callable[..., Path], source: Path) -> None:
    out = make_pair()
    plain = plan_verification(out, against=source)
    assert plan_verification(out, against=source, files_only=True).seconds < 0.1 * plain.seconds
    assert plan_verification(out, against=source, thorough=True).seconds > plain.seconds
    assert len(plan_verification(out, against=source, with_loss=True).steps) == len(plain.steps) + 1
    assert plain.to_dict()["seconds"] == pytest.approx(sum(step["seconds"] for step in plain.to_dict()["steps"]))
