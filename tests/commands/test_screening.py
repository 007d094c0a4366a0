"""``surgery convert --to screening``: calibrating from the command line, dry runs, and flags that do not fit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from surgery.commands import console
from tests.commands.conftest import program
from tests.tokenizers import save_tiny_tokenizer, write_texts

CALIBRATE = ("--lengths", "48", "--passages", "2,1", "--max-loss-increase", "1.0")


@pytest.fixture(scope="module")
def runnable(make_source: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = Path(shutil.copytree(make_source("llama"), tmp_path_factory.mktemp("model") / "tiny"))
    save_tiny_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("texts")
    write_texts(folder, documents=3, words=90)
    return folder


def test_calibrate_and_convert(surgery: Any, runnable: Path, texts: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    given = ("--to", "screening", "--calibrate", texts, *CALIBRATE, "--save", "keys")
    ran = surgery("convert", runnable, *given, "-o", out)
    assert ran.code == 0
    for part in ("Held-out text", "keys rejected", "heads", "calibration ", f"wrote {out}"):
        assert part in ran.out, part
    assert json.loads((out / "surgery" / "calibration.json").read_text())["settings"]["observe"] == 2
    _says_what_is_saved(surgery, ran.out, out, "keys: most rejected keys")

    again = tmp_path / "again"
    record = out / "surgery" / "calibration.json"
    assert surgery("convert", runnable, "--to", "screening", "--calibration", record, "-o", again).code == 0
    assert (again / "config.json").read_bytes() == (out / "config.json").read_bytes()


def _says_what_is_saved(surgery: Any, plan: str, out: Path, chosen_for: str) -> None:
    """The plan, the card and `inspect` have the same words."""
    inspected = surgery("inspect", out).out
    for text in (plan, (out / "README.md").read_text(), inspected):
        flat = " ".join(text.replace("|", " ").split())
        for part in (chosen_for, "at 16,384 tokens", "of the cache stays", "on average", "passages of 48 tokens"):
            assert part in flat, (part, flat)
    record = surgery("inspect", out, "--json").document()["calibration"]
    assert [entry["tokens"] for entry in record["saved"]][-1] == 65536 and record["settings"]["lengths"] == [48]


def test_memory_is_saved_at_a_context(surgery: Any, runnable: Path, texts: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    given = ("--to", "screening", "--calibrate", texts, *CALIBRATE, "--context", "1000")
    ran = surgery("convert", runnable, *given, "-o", out)
    assert ran.code == 0, ran.err
    _says_what_is_saved(surgery, ran.out, out, "memory: the smallest cache at 1,000 tokens")
    assert "calibrated at up to 48 tokens; longer texts were not measured" in ran.err.replace("\n", " ")
    record = json.loads((out / "surgery" / "calibration.json").read_text())
    assert [entry["tokens"] for entry in record["saved"]] == [1000, 4096, 16384, 65536]
    assert all(max(layer["threshold"]) < -1 for layer in record["layers"])


def test_with_ssmax_in_one_plan(surgery: Any, runnable: Path, texts: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    given = ("--to", "ssmax", "--to", "screening", "--calibrate", texts, *CALIBRATE)
    assert surgery("convert", runnable, *given, "-o", out, "--json").code == 0
    record = json.loads((out / "surgery" / "calibration.json").read_text())
    assert record["settings"]["before"] == ["ssmax"]


def test_no_text_is_refused_with_what_to_do(surgery: Any, model: Path, tmp_path: Path) -> None:
    ran = surgery("convert", model, "--to", "screening", "-o", tmp_path / "out")
    assert ran.code == 3 and "--calibrate" in ran.err and "--open" in ran.err
    assert not (tmp_path / "out").exists()


def test_a_dry_run_shows_shapes_and_says_so(model: Path, texts: Path, tmp_path: Path) -> None:
    """As a process of its own: it runs no model, and imports no torch."""
    ran = program("convert", model, "--to", "screening", "--calibrate", texts, "--dry-run", "-o", tmp_path / "out")
    assert ran.code == 0 and "calibrated" in ran.out
    assert "this plan shows shapes only" in ran.err and not (tmp_path / "out").exists()
    assert len([line for line in ran.out.splitlines() if "new tensors" in line and "of shape" in line]) == 1


def test_open(surgery: Any, model: Path, tmp_path: Path) -> None:
    ran = surgery("convert", model, "--to", "screening", "--open", "-o", tmp_path / "out")
    assert ran.code == 0 and "the source itself, everywhere" in ran.out and "starts open" in ran.err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--to", "rope", "--calibrate", "x.txt"), "--calibrate is no option of rope"),
        (("--to", "ssmax", "--budget", "0.01"), "--budget is no option of ssmax"),
        (("--to", "ssmax", "--open"), "--open is no option of ssmax"),
        (("--to", "screening", "--open", "--budget", "0.01"), "no text is given"),
        (("--to", "screening", "--open", "--calibrate", "x.txt"), "exclude each other"),
        (("--to", "screening", "--calibrate", "x.txt", "--lengths", "1k"), "not whole numbers"),
        (("--to", "screening", "--calibrate", "x.txt", "--passages", "3"), "two numbers"),
        (("--to", "screening", "--calibrate", "x.txt", "--budget", "2"), "budget"),
        (("--to", "screening", "--calibrate", "nowhere/*.txt", *CALIBRATE), "no text file matches"),
        (("--to", "screening", "--calibrate", "x.txt"), "passages of 1024 and 4096 tokens are longer"),
        (("--to", "screening", "--calibration", "nowhere.json"), "nowhere.json"),
    ],
)
def test_flags_that_do_not_fit(surgery: Any, runnable: Path, flags: tuple[str, ...], message: str) -> None:
    ran = surgery("convert", runnable, *flags)
    assert ran.code == 2 and message in ran.err.replace("\n", " ")


def test_the_command_writes_table_picture_and_calibrations(
    surgery: Any, runnable: Path, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = ("screen-sweep", runnable, "--text", texts, "--lengths", "48", "--passages", "2,1", "-o", tmp_path / "out")
    ran = surgery(*given, "--allow", "0.01,0.3", "--json")
    assert ran.code == 0, ran.err
    document = ran.document()
    assert [point["allowed"] for point in document["points"]] == [0.01, 0.3]
    assert document["files"] == [
        "calibration-0.01.json",
        "calibration-0.3.json",
        "sweep.png",
        "sweep.svg",
        "sweep-dark.svg",
        "sweep.json",
    ]
    assert sorted(document["files"]) == sorted(path.name for path in (tmp_path / "out").iterdir())
    assert json.loads((tmp_path / "out" / "sweep.json").read_text())["points"] == document["points"]
    assert (tmp_path / "out" / "sweep.png").read_bytes().startswith(b"\x89PNG")
    again = surgery(*given, "--allow", "0.3")
    assert again.code == 2 and "holds a sweep already" in again.err
    monkeypatch.setattr(console, "out", Console(width=80))
    ran = surgery(*given, "--allow", "0.3", "--force")
    point = json.loads((tmp_path / "out" / "sweep.json").read_text())["points"][0]["lengths"][0]
    for cell in (f"{point['rejected']:.1%}", f"{point['change']:+.4f}", f"{point['worst']:+.4f}"):
        assert cell in ran.out, "no number is cut off on a narrow terminal"
    assert not (tmp_path / "out" / "calibration-0.01.json").exists()
    assert ran.code == 0 and "rejected" in ran.out and "Next: surgery convert" in ran.out


def test_the_work_is_planned_before_it_runs(
    surgery: Any, runnable: Path, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The planned passes are those that the run then counts; a plan loads no model and writes nothing."""
    import surgery as library

    counted: list[int] = []
    settings = library.CalibrationSettings(lengths=(48,), observe=2, hold_out=1, max_loss_increase=1.0)
    library.calibrate(
        runnable, [texts], "screening", settings=settings, on_progress=lambda done, total, what: counted.append(total)
    )
    given = ("--lengths", "48", "--passages", "2,1", "-o", tmp_path / "out")
    monkeypatch.setattr("surgery.loading.operated.open_model", None)
    planned = surgery("screen-sweep", runnable, "--text", texts, *given, "--allow", ",".join("123456"), "--dry-run")
    assert planned.code == 0 and "48 tokens 13 forward passes" in planned.out, planned.out
    assert max(counted) == 48 * 13, "a calibration makes as many trials as this sweep has points"
    assert planned.out.splitlines()[-1].startswith(f"Next: surgery screen-sweep {runnable} --text {texts}")
    short = surgery("screen-sweep", runnable, "--text", texts, *given, "--allow", "1", "--dry-run", "--json")
    assert short.document()["passes"] == [{"tokens": 48, "count": 8.0}]
    plan = surgery("convert", runnable, "--to", "screening", "--calibrate", texts, *given, "--dry-run")
    assert plan.code == 0 and "on this processor; it was not run" in plan.err
    assert not (tmp_path / "out").exists()


def test_a_sweep_goes_into_a_folder_of_its_own(surgery: Any, runnable: Path, texts: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("keep")
    for output, message in (
        (tmp_path / "mine", "holds a file that is not of a sweep"),
        (tmp_path / "mine/thesis.txt", "is a file"),
    ):
        ran = surgery("screen-sweep", runnable, "--text", texts, "-o", output, "--force")
        assert ran.code == 2 and message in ran.err.replace("\n", " ")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "keep"


def test_flags_that_cannot_be(surgery: Any, runnable: Path, texts: Path) -> None:
    ran = surgery("screen-sweep", runnable)
    assert ran.code == 2 and "no text was given" in ran.err
    for wrong in ("0,0.1", "much", "nan"):
        ran = surgery("screen-sweep", runnable, "--text", texts, "--allow", wrong)
        assert ran.code == 2 and "numbers above 0" in ran.err, wrong


def test_units_with_ssmax_on_other_layers(surgery: Any, runnable: Path, texts: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    given = ["--to", "ssmax", "--to", "screening", "--form", "ssmax=paper", "--form", "screening=unit"]
    given += ["--layers", "ssmax=0", "--keep-softmax", "0", "--lengths", "48", "--passages", "2,1"]
    ran = surgery("convert", runnable, *given, "--calibrate", texts, "-o", out)
    assert ran.code == 0 and "a unit does not start as the identity" in ran.err.replace("\n", " ")
    ssmax, screening = json.loads((out / "config.json").read_text())["surgery"]["operations"]
    assert (ssmax["form"], ssmax["layers"]) == ("paper", [0])
    assert (screening["form"], screening["renormalisation"], screening["layers"]) == ("unit", 0.0, [1, 2])
    record = ("--calibration", out / "surgery" / "calibration.json", "-o", tmp_path / "again")
    ran = surgery("convert", runnable, "--to", "screening", "--keep-softmax", "1", *record)
    assert ran.code == 2 and "keep_softmax '1' differs from the calibration" in ran.err
    ran = surgery("convert", runnable, "--to", "screening", "--form", "unit", "--budget", "0.1", "--calibrate", texts)
    assert ran.code == 2 and "budget has no effect for the form unit" in ran.err
