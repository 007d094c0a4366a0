"""The commands of the README run unchanged on a tiny model, and print what the README describes."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from surgery.commands import console
from surgery.commands.app import app
from tests.tokenizers import save_tiny_tokenizer, write_paragraphs

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


@pytest.fixture(scope="module")
def workplace(make_source: object, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``model/`` and ``texts/``, as a reader of the README has it; recipes are named, not copied."""
    folder = tmp_path_factory.mktemp("readme")
    made = make_source("llama", max_position_embeddings=1024)  # type: ignore[operator]
    shutil.copytree(made, folder / "model")
    save_tiny_tokenizer(folder / "model")
    write_paragraphs(folder / "texts")
    write_paragraphs(folder / "other-texts")
    return folder


@pytest.mark.early
def test_the_shell_commands(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Each in this process, as the installed program runs it."""
    monkeypatch.chdir(workplace)
    commands = [line for block in blocks("bash") for line in block.strip().splitlines()]
    assert len(commands) == 7
    for line in commands:
        words = line.split()
        assert words[0] == "surgery"
        # Shortened as a reader would for a first try: a tiny model has a short context.
        short = {
            "convert": ["--max-loss-increase", "1", "--lengths", "512"],
            "finetune": [
                "--set",
                "budget.tokens=256",
                "--set",
                "data.sequence_length=32",
                "--set",
                "data.held_out=0.3",
            ],
            "evaluate": ["--documents", "4"],
        }.get(words[1], [])
        if "ssmax" in words and words[1] == "convert":
            short = [*short, "--haystacks", "6"]
        words = ["64" if before == "--length" else word for before, word in zip(["", *words], words, strict=False)]
        code = console.run(app, [*words[1:], *short])
        printed = capfd.readouterr()
        assert code == 0, f"{line}\n{printed.out}\n{printed.err}"
    assert (workplace / "report" / "report.html").is_file()
    assert (workplace / "trained" / "surgery" / "history.json").is_file()
    assert (workplace / "model-plain" / "config.json").read_text().count("surgery_") == 0


def test_the_python_blocks(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One after the other in one namespace, as a reader types them."""
    monkeypatch.chdir(workplace)
    code = "\n".join(blocks("python"))
    assert "AutoTokenizer.from_pretrained" in code and "surgery.convert" in code and "trust_remote_code=True" in code
    exec(compile(code, "README.md", "exec"), {"__name__": "__main__"})
    assert "checks passed" in capsys.readouterr().out


def test_links_lead_to_files() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        if not target.startswith("http"):
            assert (ROOT / target).exists(), target


def test_no_placeholder_is_left() -> None:
    assert not re.search(r"^(RESULTS|PICTURE|TODO|TBD)\b", README, flags=re.MULTILINE)


def test_it_stays_short() -> None:
    assert len(README.splitlines()) < 120
