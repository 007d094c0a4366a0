"""Output to stdout and stderr; commands that must not import torch, write files or use colours."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from rich.progress import Progress

import surgery as package
from surgery.checkpoint.record import HISTORY_NAME
from surgery.commands import console, progress
from surgery.commands.app import app
from surgery.conversion import convert, make_plan
from surgery.operations import OPERATIONS
from tests.anatomy.builders import bare_source
from tests.checkpoint.builders import listing
from tests.commands.conftest import program
from tests.conversion.conftest import tree

HEAVY = ("torch", "transformers", "peft", "accelerate", "datasets", "pandas")
SCHEMA = {"schema": 1}


@pytest.fixture
def gemma(tmp_path: Path) -> Path:
    """Half of its layers slide, so that a plan has notes."""
    return bare_source(tmp_path / "gemma", "gemma2", sliding_window=16)


def test_inspect_as_json(surgery: Any, gemma: Path) -> None:
    ran = surgery("inspect", gemma, "--json")
    assert ran.code == 0 and ran.err == ""
    expected = json.loads(json.dumps(package.inspect(gemma).to_dict()))
    assert ran.document() == {**SCHEMA, "kind": "inspection", **expected}
    assert [layer["operations"]["ssmax"] is None for layer in ran.document()["layers"]] == [False, True, False, True]


def test_inspect_as_a_table(surgery: Any, gemma: Path) -> None:
    ran = surgery("inspect", gemma)
    assert ran.code == 0 and ran.err == ""
    for part in ("gemma2", "32 query, 4 key-value, size 256", "sliding", "16", "50", "applies", "saturates", "8192"):
        assert part in ran.out, part
    for command in (
        "try {} --text TEXTS",
        "convert --to ssmax {} --calibrate TEXTS",
        "convert --to screening {} --calib",
    ):
        assert f"With texts of yours: surgery {command.format(gemma)}" in ran.out


def test_inspect_says_what_was_done_and_whether_it_was_trained(
    surgery: Any, gemma: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = convert(gemma, heads="0-3", output=tmp_path / "out").output
    monkeypatch.setattr(console, "out", Console(width=80))
    said = surgery("inspect", out).out
    assert "ssmax (anchored), N = 8192, layers 1, 3, heads 0-3" in " ".join(said.split())
    assert "no: as converted" in said and "ssmax, screening, rope never: converted already (ssmax)\n" in said
    assert "…" not in said
    (out / HISTORY_NAME).write_text(json.dumps({"entries": [{"trained": "scale", "tokens": 8000}]}))
    assert "scale (8,000 tokens)" in surgery("inspect", out).out


def test_a_dry_run_prints_the_plan_and_writes_nothing(surgery: Any, gemma: Path, tmp_path: Path) -> None:
    before = listing(tmp_path)
    ran = surgery("convert", gemma, "--to", "ssmax", "--dry-run", "--json")
    assert ran.code == 0 and listing(tmp_path) == before
    plan = make_plan(gemma, [{"name": "ssmax"}]).plan
    expected = {**json.loads(json.dumps(plan.to_dict())), "output": (tmp_path / "gemma-ssmax").as_posix()}
    assert ran.document() == {**SCHEMA, "kind": "plan", **expected}
    table = surgery("convert", gemma, "--to", "ssmax", "--dry-run")
    assert table.code == 0 and listing(tmp_path) == before
    assert table.out.endswith(f"Next: surgery convert {gemma} --to ssmax\n")
    assert plan.hash[:16] in table.out and "layers 0, 2: n saturates" in table.out
    assert "soft-capped" in table.err and "soft-capped" not in table.out


def test_a_dry_run_works_beside_an_earlier_output(surgery: Any, gemma: Path, tmp_path: Path) -> None:
    out = convert(gemma, output=tmp_path / "out").output
    before = listing(tmp_path)
    ran = surgery("convert", gemma, "--to", "ssmax", "-o", out, "--dry-run")
    assert ran.code == 0 and listing(tmp_path) == before
    assert ran.out.endswith(f"Next: surgery convert {gemma} --to ssmax -o {out} --force\n")
    assert "holds an earlier output; the run needs --force" in ran.err
    shutil.rmtree(out / "surgery")  # not to be replaced by any option
    assert surgery("convert", gemma, "--to", "ssmax", "-o", out, "--dry-run").code == 2


def test_inspect_names_the_source_that_it_finds(surgery: Any, gemma: Path, tmp_path: Path) -> None:
    out = convert(gemma, output=tmp_path / "out").output
    assert surgery("inspect", out).out.endswith(f"Next: surgery verify {out} --against {gemma}\n")
    (gemma / "config.json").write_text((gemma / "config.json").read_text() + "\n")
    assert surgery("inspect", out).out.endswith(f"Next: surgery verify {out}\n"), "another model of the same name"


def test_a_conversion_is_that_of_the_dry_run(surgery: Any, gemma: Path, tmp_path: Path) -> None:
    options = [
        "--to",
        "ssmax",
        "--form",
        "bias",
        "--layers",
        "1,3",
        "--heads",
        "0-7",
        "-N",
        "50",
        "--start",
        "scale=0.5",
    ]
    planned = surgery("convert", gemma, *options, "--dry-run", "--json").document()
    ran = surgery("convert", gemma, *options, "-o", tmp_path / "out", "--json", "--copy")
    assert ran.code == 0
    done = ran.document()
    assert done["kind"] == "conversion" and done["output"] == str(tmp_path / "out")
    assert done["placed"] == {"source-model.safetensors": "copied"}
    assert done["plan"] == {name: value for name, value in planned.items() if name not in ("schema", "kind", "output")}
    assert done["plan"]["operations"][0]["start"] == {"scale": 0.5, "bias": 1.0}
    # The library does the same.
    again = {"form": "bias", "layers": "1,3", "heads": "0-7", "reference_length": 50, "start": {"scale": 0.5}}
    assert tree(convert(gemma, **again, output=tmp_path / "library", mode="copy").output) == tree(tmp_path / "out")


def test_convert_and_revert_for_people(surgery: Any, gemma: Path, tmp_path: Path) -> None:
    ran = surgery("convert", gemma, "--to", "ssmax", "-o", tmp_path / "out", "--link")
    assert ran.code == 0 and "1 shard linked" in ran.out
    assert f"Next: surgery verify {tmp_path / 'out'} --against {gemma}" in ran.out
    assert surgery("convert", gemma, "--to", "ssmax", "-o", tmp_path / "out").code == 2
    quiet = surgery("convert", gemma, "--to", "ssmax", "-o", tmp_path / "out", "--force", "--quiet")
    assert "Next:" not in quiet.out
    assert quiet.code == 0 and len(quiet.out.split("\n\n")[0].strip()) < 400 and quiet.err == ""
    inspected = surgery("inspect", tmp_path / "out")
    assert "ssmax (anchored)" in inspected.out and "Next: surgery verify" in inspected.out
    back = surgery("revert", tmp_path / "out", "-o", tmp_path / "back", "--json")
    assert back.code == 0 and back.err == ""
    assert back.document() == {
        **SCHEMA,
        "kind": "revert",
        "output": str(tmp_path / "back"),
        "files": 2,
        "placed": {"model.safetensors": "copied"},
        "compared": [],
    }
    linked = surgery("revert", tmp_path / "out", "-o", tmp_path / "linked", "--link", "--json").document()
    assert linked["placed"] == {"model.safetensors": "linked"}
    assert tree(tmp_path / "back") == tree(gemma)
    assert "(2 files, 1 shard copied)" in surgery("revert", tmp_path / "out", "-o", tmp_path / "again").out


def _is_one_verification(document: dict[str, Any]) -> None:
    assert document["kind"] == "verification" and document["schema"] == 1 and document["passed"] is True
    assert document["verdict"] == f"{len(document['checks'])} checks passed"


@pytest.mark.slow
def test_verify_as_json(make_source: Any, tmp_path: Path) -> None:
    """As a process: what transformers and torch print must not get between the braces."""
    source = make_source("llama")
    out = convert(source, output=tmp_path / "out").output
    ran = program("verify", out, "--against", source, "--length", "16", "--json")
    assert ran.code == 0, ran.err
    _is_one_verification(ran.document())
    assert "\x1b" not in ran.err and "Traceback" not in ran.err


def test_verify_as_json_in_this_process(make_source: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The same by the file descriptor, which libraries in C write to."""
    source = make_source("llama")
    out = convert(source, output=tmp_path / "out").output
    capfd.readouterr()
    assert console.run(app, ["verify", str(out), "--against", str(source), "--length", "16", "--json"]) == 0
    printed = capfd.readouterr()
    _is_one_verification(json.loads(printed.out))
    assert "\x1b" not in printed.err and "Traceback" not in printed.err


def test_verify_as_a_table(surgery: Any, make_source: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = convert(make_source("llama"), output=tmp_path / "out").output
    ran = surgery("verify", out, "--layers", "1", "--length", "16")
    assert ran.code == 0
    assert "n: token by token" in ran.out and "needs the source: pass --against" in ran.out
    assert "checks passed, 5 skipped" in ran.out
    assert f"Next: surgery evaluate {out} --suite recall\n" in ran.out


def test_verify_says_how_to_go_on(
    surgery: Any, make_source: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without torch: from the files alone, on which the rest depends."""
    source = make_source("llama")
    monkeypatch.chdir(source.parent)
    out = convert(source, output=source.parent / "out").output
    try:
        ran = surgery("verify", "out", "--files-only")
        assert ran.out.endswith(f"Next: surgery verify out --against {source.name}\n"), ran.out[-200:]
        ran = surgery("verify", "out", "--against", source.name, "--length", "16")
        trained = "--set model=out --set data.text=TEXTS --set output=out-trained\n"
        assert ran.out.endswith(f"With texts of yours: surgery finetune ssmax-scale {trained}"), ran.out[-200:]
    finally:
        shutil.rmtree(out)


LIGHT: dict[str, list[str]] = {
    "--help": ["--help"],
    "--version": ["--version"],
    "convert --help": ["convert", "--help"],
    "inspect": ["inspect", "MODEL"],
    "inspect --json": ["inspect", "MODEL", "--json"],
    "convert --dry-run": ["convert", "MODEL", "--to", "ssmax", "--dry-run"],
    "convert": ["convert", "MODEL", "--to", "ssmax", "-o", "OUT"],
    "revert": ["revert", "OUT", "-o", "BACK"],
}
PROBE = """
import json, os, sys
from surgery.commands import console, progress
from surgery.commands.app import app
import surgery
from surgery.commands.app import app
for arguments in json.loads(sys.argv[1]):
    with open(os.devnull, "w") as sys.stdout:
        code = console.run(app, arguments)
    loaded = sorted(set(json.loads(sys.argv[2])) & {name.partition(".")[0] for name in sys.modules})
    sys.stderr.write(json.dumps([code, loaded]) + "\\n")
"""


def _probed(calls: list[list[str]], folder: Path) -> list[str]:
    """What the probe and the commands say on stderr, line by line, when they run in a folder."""
    process = subprocess.run(
        [sys.executable, "-c", PROBE, json.dumps(calls), json.dumps(HEAVY)],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        cwd=folder,
    )
    return process.stderr.splitlines()


def test_fast_commands_leave_heavy_libraries_alone(model: Path, tmp_path: Path) -> None:
    """One process for all: what one of them had imported, the next would still have."""
    places = {"MODEL": str(model), "OUT": str(tmp_path / "out"), "BACK": str(tmp_path / "back")}
    calls = [[places.get(argument, argument) for argument in arguments] for arguments in LIGHT.values()]
    lines = _probed(calls, tmp_path)
    assert dict(zip(LIGHT, lines, strict=True)) == dict.fromkeys(LIGHT, "[0, []]")
    assert (tmp_path / "back").is_dir()


WRONG: dict[str, tuple[list[str], int]] = {
    "a base that is not there": (["evaluate", "MODEL", "--text", "TEXT", "--against", "NOWHERE"], 2),
    "no such suite": (["evaluate", "MODEL", "--text", "TEXT", "--suite", "nowhere"], 2),
    "no such text": (["evaluate", "MODEL", "--text", "NOWHERE"], 2),
    "a number": (["evaluate", "MODEL", "--text", "TEXT", "--length", "1"], 2),
    "a device": (["evaluate", "MODEL", "--text", "TEXT", "--device", "foo"], 2),
    "a trial without texts": (["try", "MODEL"], 2),
    "a trial on no such text": (["try", "MODEL", "--text", "NOWHERE"], 2),
    "a trial of what is converted": (["try", "OUT", "--text", "TEXT"], 3),
    "verifying a source": (["verify", "MODEL"], 3),
    "a device of verify": (["verify", "OUT", "--device", "foo"], 2),
    "merging a source": (["merge", "MODEL", "-o", "NEW"], 3),
    "merging what is no constant": (["merge", "OUT", "-o", "NEW"], 3),
    "a sweep on no such text": (["screen-sweep", "MODEL", "--text", "NOWHERE"], 2),
}


def test_what_is_wrong_is_told_before_heavy_libraries_are_imported(model: Path, tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("words " * 100)
    places = {name: str(tmp_path / name.lower()) for name in ("OUT", "NEW", "NOWHERE")}
    places |= {"MODEL": str(model), "TEXT": str(tmp_path / "words.txt")}
    convert(model, form="paper", output=tmp_path / "out")
    calls = [[places.get(argument, argument) for argument in arguments] for arguments, _ in WRONG.values()]
    lines = [line for line in _probed(calls, tmp_path) if line.startswith("[")]
    assert dict(zip(WRONG, lines, strict=True)) == {name: f"[{code}, []]" for name, (_, code) in WRONG.items()}


def test_version_and_help(surgery: Any) -> None:
    assert surgery("--version").out == f"surgery {package.__version__}\n"
    for command in ("inspect", "convert", "verify", "revert"):
        assert command in surgery("--help").out
        assert surgery(command, "--help").code == surgery(command, "-h").code == 0


def test_help_names_the_defaults_and_no_types_of_python(surgery: Any) -> None:
    """Square brackets in a help text would be taken for markup, and vanish.

    The parser's own words for --help and for arguments that repeat (``model...``) are left as they are.
    """
    operations = [part for name in OPERATIONS for part in ("--to", name)]
    said = " ".join(surgery("convert", *operations, "--help").out.split())
    for default in (
        "beside the model, operations added",
        "ssmax: anchored, with --calibrate constant; screening: gated",
        "the trained length",
        "; ".join(f"{name}: full{', with --calibrate all' * (name == 'ssmax')}" for name in OPERATIONS),
        "yarn",
        "8,4",
    ):
        assert f"[default: {default}]" in said, default
    for command in (
        ["convert"],
        ["convert", *operations],
        ["evaluate"],
        ["report"],
        ["finetune"],
        ["zoo", "run"],
        ["recipes", "check"],
    ):
        lines = surgery(*command, "--help").out.splitlines()
        text = "\n".join(line for line in lines if "--help" not in line and not re.search(r"[a-z][.]{3} ", line))
        assert not re.search(r"list\[|<bool>|\s\.\s|\w [.;,] ", text), text


@pytest.mark.parametrize("variable", ["NO_COLOR", None])
def test_colour_is_for_terminals_and_no_color_is_respected(model: Path, variable: str | None) -> None:
    forced = {"FORCE_COLOR": "1", "TERM": "xterm-256color"}
    ran = program("inspect", model, **forced, **({variable: "1"} if variable else {}))
    coloured = any(f"\x1b[{code}m" in ran.out for code in (*range(30, 38), 32))
    assert not coloured if variable else "\x1b[" in ran.out


def test_a_pipe_gets_plain_text(model: Path) -> None:
    ran = program("inspect", model)
    assert ran.code == 0 and "\x1b" not in ran.out + ran.err


def test_progress_in_a_log_is_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a log, a verification of minutes prints its current step; one of seconds prints nothing."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    for silent, expected in ((False, ["n: packed, 25%", "ablation, 100%"]), (True, [])):
        file = io.StringIO()
        now[0] = 0.0
        with progress.bar(Console(file=file, width=20), silent=silent) as bar:
            task = bar.add_task("verifying", total=4, rate="")
            for at, what, done in (
                (1.0, "loading", 0),
                (16.0, "n: packed", 1),
                (17.0, "n: batch", 2),
                (31.5, "ablation", 4),
            ):
                now[0] = at
                bar.update(task, description=what, completed=done)
        assert file.getvalue().splitlines() == expected


def test_a_line_has_the_rate_and_the_time_that_remains() -> None:
    now = [0.0]
    with Progress(console=Console(file=io.StringIO()), disable=True, get_time=lambda: now[0]) as bar:
        task = bar.add_task("training, loss 2.5", total=10, rate="120 tokens/s")
        for second in range(3):
            now[0] = float(second)
            bar.update(task, completed=second)
        assert progress.line_of(bar.tasks[0]) == "training, loss 2.5, 20%, 120 tokens/s, 0:00:08 left"
        bar.update(task, completed=10)
        assert progress.line_of(bar.tasks[0]) == "training, loss 2.5, 100%, 120 tokens/s"


@pytest.mark.parametrize("terminal", [False, True])
def test_the_remaining_time_is_known_where_each_step_takes_minutes(
    terminal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half a minute, over which rich takes the speed, has no two updates of such steps."""
    now = [0.0]
    file = io.StringIO()
    with progress.bar(Console(file=file, force_terminal=terminal, width=200), silent=False) as bar:
        monkeypatch.setattr(bar, "get_time", lambda: now[0])
        task = bar.add_task("observing", total=10, rate="")
        for done in range(1, 5):
            now[0] = 100.0 * done
            bar.update(task, completed=done)
        assert bar.tasks[0].time_remaining == 600


def test_a_step_that_begins_has_a_line_at_once() -> None:
    """The trial step of a long row runs for minutes and tells nothing."""
    file = io.StringIO()
    with progress.Lines(Console(file=file)) as bar:
        task = bar.add_task("reading", total=None, rate="")
        bar.update(task, description="tokenizing")
        bar.reset(task, description="trial step and save", total=8)
    assert file.getvalue().splitlines() == ["trial step and save, 0%"]
