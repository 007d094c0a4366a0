"""Every kind of error: its exit code, a message that helps, and a traceback only where it was asked for."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from surgery.anatomy import REFUSED
from surgery.checkpoint.record import HISTORY_NAME
from tests.anatomy.builders import bare_source
from tests.checkpoint.builders import listing
from tests.commands.conftest import program

Case = tuple[list[Any], int, list[str]]


def _sliding(place: Path) -> Path:
    return bare_source(place / "sliding", "mistral", sliding_window=16)


def _family(place: Path, name: str) -> Path:
    folder = bare_source(place / "family")
    text = (folder / "config.json").read_text().replace('"llama"', f'"{name}"')
    (folder / "config.json").write_text(text)
    return folder


def _broken(place: Path) -> Path:
    folder = bare_source(place / "broken")
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-1])
    return folder


def _bin(place: Path) -> Path:
    folder = bare_source(place / "bin")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    return folder


def _adapter(place: Path) -> Path:
    (place / "adapter").mkdir()
    (place / "adapter" / "adapter_config.json").write_text("{}")
    return place / "adapter"


def _file(place: Path) -> Path:
    (place / "file").write_text("x")
    return place / "file"


def _full(place: Path) -> Path:
    (place / "full").mkdir()
    (place / "full" / "mine").write_text("x")
    return place / "full"


# What is given, the exit code, and what the message must say: what was given, and what to do.
CASES: dict[str, Callable[[Path, Path], Case]] = {
    "no such folder": lambda model, place: (["inspect", place / "nowhere"], 2, ["nowhere"]),
    "no such command": lambda model, place: (["inspec", model], 2, ["inspec"]),
    "no such option": lambda model, place: (["inspect", model, "--layer"], 2, ["--layer"]),
    "no operation": lambda model, place: (["convert", model], 2, ["--to OPERATION"]),
    "unknown operation": lambda model, place: (["convert", model, "--to", "softmin"], 2, ["softmin", "ssmax"]),
    "misspelled operation": lambda model, place: (["convert", model, "--to", "ssmx"], 2, ["ssmx", "mean ssmax?"]),
    "all wrong options": lambda model, place: (
        ["convert", model, "--to", "ssmax", "--form", "papier", "--layers", "a", "--heads", "1-", "-N", "1"],
        2,
        ["form", "anchored", "layers", "'a'", "heads", "'1-'", "reference_length"],
    ),
    "start": lambda model, place: (["convert", model, "--to", "ssmax", "--start", "scale"], 2, ["scale=0.1"]),
    "link and copy": lambda model, place: (["convert", model, "--to", "ssmax", "--link", "--copy"], 2, ["--copy"]),
    "output": lambda model, place: (["convert", model, "--to", "ssmax", "-o", _full(place)], 2, ["full", "'mine'"]),
    "output, dry": lambda model, place: (
        ["convert", model, "--to", "ssmax", "-o", _full(place), "--dry-run"],
        2,
        ["full", "'mine'"],
    ),
    "output, forced": lambda model, place: (
        ["convert", model, "--to", "ssmax", "-o", _full(place), "--force"],
        2,
        ["full", "was not written by surgery"],
    ),
    "output, before calibrating": lambda model, place: (
        ["convert", model, "--to", "screening", "--calibrate", model / "config.json", "-o", _full(place)],
        2,
        ["full", "'mine'"],
    ),
    "output inside": lambda model, place: (["convert", model, "--to", "ssmax", "-o", model / "x"], 2, ["inside"]),
    "output in a file": lambda model, place: (
        ["convert", model, "--to", "ssmax", "-o", model / "config.json" / "x"],
        2,
        ["config.json"],
    ),
    "output below a file": lambda model, place: (
        ["convert", model, "--to", "ssmax", "-o", _file(place) / "deep" / "x"],
        2,
        ["'file', which is a file"],
    ),
    "output inside another model": lambda model, place: (
        ["convert", model, "--to", "ssmax", "-o", bare_source(place / "other") / "x"],
        2,
        ["lies inside the model folder 'other'"],
    ),
    "a report inside a model": lambda model, place: (
        ["evaluate", model, "--suite", "retrieval", "-o", model / "report"],
        2,
        ["lies inside the model folder"],
    ),
    "merging a source": lambda model, place: (
        ["merge", model, "-o", place / "merged"],
        3,
        ["a model without an operation or adapter", "Convert it first"],
    ),
    "nothing can be written": lambda model, place: (
        ["convert", model, "--to", "ssmax", "-o", "/proc/x"],
        2,
        ["nothing can be written in '/proc'"],
    ),
    "nothing can be written, dry": lambda model, place: (
        ["convert", model, "--to", "ssmax", "-o", "/proc/x", "--dry-run"],
        2,
        ["nothing can be written in '/proc'"],
    ),
    "nothing can be written, before calibrating": lambda model, place: (
        ["convert", model, "--to", "screening", "--calibrate", place / "no such text", "-o", "/proc/x"],
        2,
        ["nothing can be written in '/proc'"],
    ),
    "a device where no model runs": lambda model, place: (
        ["convert", model, "--to", "ssmax", "--device", "cpu", "--dry-run"],
        2,
        ["--device has no effect", "--calibrate"],
    ),
    "no calibration": lambda model, place: (
        ["convert", model, "--to", "screening", "--calibration", model / "config.json"],
        2,
        ["config.json is not a calibration", "screen-sweep"],
    ),
    "verify a file": lambda model, place: (["verify", _file(place)], 2, ["is not a folder", "Give the model folder"]),
    "revert a file": lambda model, place: (["revert", _file(place), "-o", place / "b"], 2, ["is not a folder"]),
    "refresh a file": lambda model, place: (["refresh", _file(place)], 2, ["is not a folder"]),
    "merge a file": lambda model, place: (["merge", _file(place), "-o", place / "b"], 2, ["is not a folder"]),
    "truncated": lambda model, place: (["convert", _broken(place), "--to", "ssmax"], 2, ["model.safetensors"]),
    "bin only": lambda model, place: (["convert", _bin(place), "--to", "ssmax"], 2, ["safetensors"]),
    "unknown family": lambda model, place: (["inspect", _family(place, "lama")], 3, ["'lama'", "'llama'"]),
    "refused family": lambda model, place: (["inspect", _family(place, "qwen")], 3, [REFUSED["qwen"]]),
    "nothing to convert": lambda model, place: (["convert", _sliding(place), "--to", "ssmax"], 3, ["--layers all"]),
    "no such layer": lambda model, place: (["convert", model, "--to", "ssmax", "--layers", "9"], 3, ["9", "0-3"]),
    "not converted": lambda model, place: (["verify", model], 3, ["model", "plan.json", "`surgery convert`"]),
    "verify an adapter": lambda model, place: (["verify", _adapter(place)], 2, ["surgery merge", "adapter"]),
    "nothing to revert": lambda model, place: (["revert", model, "-o", place / "b"], 3, ["not a converted"]),
    "no output": lambda model, place: (["revert", model], 2, ["--output"]),
    "short": lambda model, place: (["verify", model, "--length", "3"], 2, ["--length"]),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("verbose", [False, True])
def test_the_exit_code_and_the_message(surgery: Any, model: Path, tmp_path: Path, case: str, verbose: bool) -> None:
    arguments, code, said = CASES[case](model, tmp_path)
    before = listing(tmp_path)
    ran = surgery(*arguments, *(["-v"] if verbose else []))
    assert ran.code == code
    message = " ".join(ran.err.split())
    assert all(part in message for part in said), message
    assert ran.out == ""
    assert listing(tmp_path) == before, "an error must write nothing"
    from_the_parser = " -h` " in ran.err  # before a command runs, so no frame of this package is behind it
    assert ("Traceback" in ran.err) == (verbose and not from_the_parser)


def test_force_is_named_only_where_it_helps(surgery: Any, model: Path, tmp_path: Path) -> None:
    assert "--force" not in surgery("convert", model, "--to", "ssmax", "-o", _full(tmp_path)).err
    assert surgery("convert", model, "--to", "ssmax", "-o", tmp_path / "out").code == 0
    again = surgery("convert", model, "--to", "ssmax", "-o", tmp_path / "out")
    assert again.code == 2 and "an earlier output" in again.err and "--force" in again.err


def test_a_recipe_is_not_copied_into_a_model(surgery: Any, model: Path) -> None:
    before = listing(model)
    ran = surgery("recipes", "copy", "tiny", model)
    assert ran.code == 2 and "is a model folder" in ran.err and listing(model) == before


@pytest.mark.parametrize("case", CASES)
def test_an_error_is_a_document_with_json(surgery: Any, model: Path, tmp_path: Path, case: str) -> None:
    arguments, code, said = CASES[case](model, tmp_path)
    plain, ran = surgery(*arguments), surgery(*arguments, "--json")
    assert ran.code == code and ran.err == plain.err
    document = ran.document()
    assert document["schema"] == 1 and document["kind"] == "error" and document["error"]["code"] == code
    message = " ".join(f"{document['error']['message']} {document['error']['hint'] or ''}".split())
    assert all(part in message for part in said), message


@pytest.mark.parametrize(
    "command",
    [
        ["evaluate", "./nowhere", "--text", "x"],
        ["families", "nowhere"],
        ["finetune", "nowhere.yaml"],
        ["merge", "nowhere", "-o", "x"],
        ["recipes", "check", "nowhere.yaml"],
        ["recipes", "copy", "nowhere"],
        ["recipes", "list", "--no-such-option"],
        ["refresh", "nowhere"],
        ["report", "nowhere"],
        ["zoo", "plan", "nowhere.yaml"],
        ["zoo", "status", "nowhere.yaml"],
    ],
)
def test_every_command_fails_with_one_document(
    surgery: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    ran = surgery(*command, "--json")
    assert ran.code == (3 if command[0] == "families" else 2)
    assert ran.document()["schema"] == 1 and ran.err != ""
    assert "No such option: --json" not in ran.err and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("command", "message", "hint"),
    [
        ("inspct x", "'inspct': no such command", "Did you mean `surgery inspect`?"),
        ("zoo rn", "'rn': no such command", "Did you mean `surgery zoo run`?"),
        ("inspect", "MODEL is missing", "Run for example `surgery inspect MODEL`"),
        ("push a", "NAME/MODEL is missing", "`surgery push MODEL NAME/MODEL`"),
        ("evaluate --lenth 5 x", "--lenth: surgery evaluate has no such option", "Did you mean --length?"),
        ("evaluate x -Q", "-Q: surgery evaluate has no such option", "`surgery evaluate -h` shows the options."),
        ("evaluate x --length abc", "--length abc: must be a whole number", "`surgery evaluate -h`"),
        ("try x --minutes=long", "--minutes long: must be a number", "`surgery try -h`"),
        ("verify x --layers 0", "--layers 0: must be at least 1", "`surgery verify -h`"),
        ("verify a b", "b: one word too many", "The form is `surgery verify MODEL`."),
        ("evaluate x --dtype int8", "--dtype int8: ", "float32"),
    ],
)
def test_errors_of_the_parser_look_like_all_others(surgery: Any, command: str, message: str, hint: str) -> None:
    ran = surgery(*command.split())
    first, _, second = ran.err.partition("\n")
    assert ran.code == 2 and first.startswith(f"error: {message}"), ran.err
    assert hint in ran.err and "Usage:" not in ran.err and ran.out == ""
    document = surgery(*command.split(), "--json").document()["error"]
    assert f"error: {document['message']}" == first and (document["hint"] or "") == second.strip()


def test_an_option_without_its_value(surgery: Any) -> None:
    assert surgery("convert", "x", "-o").err.startswith("error: -o needs a value\n`surgery convert -h`")


def test_exit_codes_reach_the_shell(model: Path, tmp_path: Path) -> None:
    """One of each as a real program: done, wrong usage, refused; the others are covered in this process."""
    done = program("inspect", model)
    assert done.code == 0 and "Traceback" not in done.err
    usage = program("convert", model, "--to", "softmin")
    assert usage.code == 2 and usage.err.startswith("error: ") and usage.out == ""
    refused = program("convert", _sliding(tmp_path), "--to", "ssmax", "-v")
    assert refused.code == 3 and "Traceback" in refused.err and "operations/base.py" in refused.err
    assert "typer" not in refused.err, "the frames of the parser say nothing"


def test_a_verification_that_fails_is_exit_code_4(surgery: Any, make_source: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert surgery("convert", make_source("llama"), "--to", "ssmax", "-o", out).code == 0
    with (out / "modeling_surgery.py").open("a") as file:
        file.write("# changed\n")
    ran = surgery("verify", out, "--files-only", "--json")
    assert ran.code == 4
    failed = [check["name"] for check in ran.document()["checks"] if check["status"] == "failed"]
    assert failed == ["code is this version's"] and ran.document()["passed"] is False


def test_an_unexpected_error_is_one_line_and_exit_code_1(
    surgery: Any, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise RuntimeError("it broke [bold]here[/bold]")

    monkeypatch.setattr("surgery.models.inspection.inspect", fails)
    ran = surgery("inspect", model)
    assert ran.code == 1 and "Traceback" not in ran.err
    assert "RuntimeError: it broke [bold]here[/bold]" in ran.err and "Pass -v" in ran.err
    assert "Traceback" in surgery("inspect", model, "-v").err


def test_an_interruption_is_exit_code_130(surgery: Any, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("surgery.models.inspection.inspect", interrupted)
    ran = surgery("inspect", model)
    assert ran.code == 130 and "interrupted" in ran.err
    assert surgery("inspect", model, "--json").document()["error"] == {
        "code": 130,
        "message": "interrupted",
        "hint": None,
    }


def test_revert_after_weights_were_trained_is_refused(surgery: Any, model: Path, tmp_path: Path) -> None:
    assert surgery("convert", model, "--to", "ssmax", "-o", tmp_path / "out").code == 0
    entry = {"entries": [{"trained": "full"}]}
    (tmp_path / "out" / HISTORY_NAME).write_text(json.dumps(entry))
    ran = surgery("revert", tmp_path / "out", "-o", tmp_path / "back")
    assert ran.code == 3 and "were trained (full)" in ran.err
    assert not (tmp_path / "back").exists()


@pytest.mark.parametrize("command", ["inspect", "convert"])
def test_control_characters_of_a_stranger_are_spelled_out(surgery: Any, tmp_path: Path, command: str) -> None:
    strings = {"architectures": ["x\x1b[31mred\x07"], "rope_parameters": {"rope_type": "\x1b[5m"}}
    folder = bare_source(tmp_path / "m\x1b[31m", **strings)
    ran = surgery(command, folder, *(["--to", "ssmax"] if command == "convert" else []))
    assert "\x1b" not in ran.out + ran.err and "\x07" not in ran.out + ran.err
    assert "\\x1b" in ran.out + ran.err


def test_a_termination_cleans_up_and_is_exit_code_143(
    surgery: Any, model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """SIGTERM in the middle of writing: no lock and no half output stays."""

    def terminated(*_: Any, **__: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)

    before = signal.getsignal(signal.SIGTERM)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    monkeypatch.setattr("surgery.conversion.execution.write_json", terminated)
    try:
        ran = surgery("convert", model, "--to", "ssmax", "-o", tmp_path / "out", "--json")
    finally:
        signal.signal(signal.SIGTERM, before)
    assert ran.code == 143 and "terminated" in ran.err and ran.document()["error"]["code"] == 143
    assert not [path.name for path in tmp_path.iterdir() if "out" in path.name]


@pytest.mark.parametrize(
    "command",
    [
        "inspect smoll",
        "convert smoll --to ssmax",
        "verify smoll",
        "verify smol --against smoll",
        "evaluate smoll --text words.txt",
        "evaluate smol --against smoll --text words.txt",
        "finetune ssmax-scale --set model=smoll --set data.text=words.txt --set output=out --dry-run",
        "merge smoll -o out",
        "merge adapter -o out --base smoll",
        "push smoll me/model",
        "revert smoll -o out",
        "refresh smoll",
        "report smoll",
        "screen-sweep smoll --text words.txt -o out",
        "try smoll --text words.txt",
        "zoo plan zoo.yaml",
    ],
)
def test_a_mistyped_folder_gets_the_nearest_name(
    command: str, surgery: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hub is not asked: a request would end with another message."""
    from surgery.conversion import convert

    convert(bare_source(tmp_path / "source"), "ssmax", output=tmp_path / "smol")
    (tmp_path / "words.txt").write_text("words " * 400)
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    (tmp_path / "adapter" / "adapter_model.safetensors").write_text("")
    (tmp_path / "zoo.yaml").write_text("output: out\nmodels: [{path: smoll}]\noperations: [{name: ssmax}]\n")
    monkeypatch.chdir(tmp_path)
    ran = surgery(*command.split())
    assert ran.code == (3 if "zoo" in command else 2), ran.err
    said = " ".join((ran.err + ran.out).split())
    assert "Did you mean" in said and "smol'?" in said, said
