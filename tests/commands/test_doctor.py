"""``surgery doctor``, and shell completion."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from surgery.commands import main
from surgery.loading import machine


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int | str | None, str, str]:
    with pytest.raises(SystemExit) as left:
        main(["doctor", *arguments])
    said = capsys.readouterr()
    return left.value.code, said.out, said.err


def test_json_holds_versions_devices_and_places(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    code, out, _ = run(capsys, "--json")
    document = json.loads(out)
    assert code == 0 and document["kind"] == "doctor" and document["problems"] == []
    assert {"torch", "transformers", "safetensors"} <= {package["name"] for package in document["packages"]}
    cpu = document["devices"][-1]
    assert cpu["name"] == "cpu" and 0 < cpu["free"] <= cpu["memory"]
    assert document["can_run"]["cpu"]["bfloat16"] == pytest.approx(2 * document["can_run"]["cpu"]["float32"], abs=2)
    outputs = document["places"][0]
    assert outputs["path"] == str(tmp_path) and outputs["free"] > 0 and outputs["writable"]
    assert outputs["sharing"][0] in ("reflink", "copied")
    assert document["settings"]["HF_TOKEN"] == "set" and "hf_secret" not in out
    assert list(tmp_path.iterdir()) == []


def test_a_version_out_of_range_is_a_problem(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = machine._version
    monkeypatch.setattr(machine, "_version", lambda name: {"peft": "0.1.0", "rich": None}.get(name, real(name)))
    code, out, err = run(capsys)
    assert code == 1
    assert "peft 0.1.0: >=0.19 is required" in err and "rich is missing" in err and "cpu" in out


def test_another_transformers_is_a_note(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    real = machine._version
    monkeypatch.setattr(machine, "_version", lambda name: "5.22.0" if name == "transformers" else real(name))
    code, _, err = run(capsys)
    assert code == 0 and "not 5.22.0" in err


def test_a_folder_that_cannot_be_written_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "no folder").write_text("")
    assert any("no folder is not writable" in problem for problem in machine.examine(tmp_path / "no folder").problems)


def test_a_folder_that_is_not_there_yet_is_looked_at_where_it_would_be(tmp_path: Path) -> None:
    place = machine.examine(tmp_path / "a" / "b").places[0]
    assert place.writable and place.free and not (tmp_path / "a").exists()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_names_the_commands_without_torch(shell: str) -> None:
    """As the shell asks: the script that typer installs sets these variables."""
    asked = {
        "bash": {"COMP_WORDS": "surgery re", "COMP_CWORD": "1"},
        "zsh": {"_TYPER_COMPLETE_ARGS": "surgery re"},
        "fish": {"_TYPER_COMPLETE_ARGS": "surgery re", "_TYPER_COMPLETE_FISH_ACTION": "get-args"},
    }
    done = _asked({"_SURGERY_COMPLETE": f"complete_{shell}", **asked[shell]})
    assert all(name in done.stdout for name in ("revert", "refresh", "recipes", "report")), done
    assert "finetune" not in done.stdout and done.stderr.strip().endswith("False")


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("surgery convert --to s", {"ssmax", "screening"}),
        ("surgery convert model --form a", {"anchored"}),
        ("surgery convert model --form u", {"unit"}),
        ("surgery convert model --layers ", {"full", "sliding", "chunked", "all"}),
        ("surgery convert model --windows ", {"head", "group"}),
        ("surgery finetune screening-", {"screening-memory", "screening-recover", "screening-unit"}),
        ("surgery recipes show ti", {"tiny"}),
        ("surgery evaluate model --suite q", {"quick"}),
        ("surgery families ministral", {"ministral", "ministral3"}),
        ("surgery finetune no-such", set()),
    ],
)
def test_completion_of_values(typed: str, offered: set[str]) -> None:
    words = typed.split(" ")
    done = _asked({"_SURGERY_COMPLETE": "complete_bash", "COMP_WORDS": typed, "COMP_CWORD": str(len(words) - 1)})
    assert set(done.stdout.split()) == offered and done.stderr.strip().endswith("False"), done


def _asked(variables: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """What the program answers a shell, and on stderr whether it imported torch."""
    program = (
        "import sys; from surgery.commands import main; sys.argv = ['surgery']\n"
        "try: main()\nfinally: print('torch' in sys.modules, file=sys.stderr)"
    )
    return subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
