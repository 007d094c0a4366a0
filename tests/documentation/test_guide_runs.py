"""The guide's commands run, page by page and in their order, on a tiny model; what cannot is named with the reason."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from surgery.commands import console
from surgery.commands.app import app
from tests.documentation.links import ROOT
from tests.documentation.test_commands import code_lines, words_of
from tests.tokenizers import save_tiny_tokenizer, write_paragraphs

GUIDE = ROOT / "docs" / "guide"
PAGES = [page.name for page in sorted(GUIDE.glob("*.md")) if code_lines(page.read_text(encoding="utf-8"))]

# Page and how the line begins -> why it does not run here.
NOT_RUN = {
    ("finetune.md", "surgery finetune MINE.yaml --resume"): "it needs an interrupted run: tests/recovery",
    ("finetune.md", "surgery evaluate OUT OUT-temperature"): "it needs a run with a control: tests/recovery",
    ("hub.md", "surgery push"): "it needs the hub: tests/checkpoint",
    ("hub.md", "surgery convert --to ssmax MODEL --push"): "it needs the hub: tests/checkpoint",
    ("new.md", "surgery new softmax ... --dry-run"): "the reader fills in the sizes",
    ("zoo.md", "surgery zoo run zoo.yaml --push"): "it needs the hub: tests/zoo",
    ("zoo.md", "surgery zoo run zoo.yaml --engine ray"): "it needs Ray: tests/zoo",
}

# What a reader puts in place of a word of the pages; a tiny model has few layers and short texts.
WORDS = {
    "MODEL": "model",
    "MODELS": "operated",
    "BASE": "model",
    "MODEL-recall": "model-recall",
    "MODEL-plain": "model-plain",
    "MODEL-adapted": "operated",
    "MINE.yaml": "tiny.yaml",
    "SCREENED": "model-screening",
    "OUT": "model-screening",
    ".cache/SmolLM2-135M-Instruct": "model",
    "calibration.json": "model-screening/surgery/calibration.json",
    "1,5,9": "1,2",
    "0-20": "0",
    "0.002,0.005,0.01": "0.005,10",
    "4096": "512",
}

# Commands before those of a page.
BEFORE = {
    "evaluate.md": [
        *(f"surgery convert --to ssmax model -o {name}" for name in ("operated", "converted")),
        "surgery convert --to ssmax --form paper model -o tried",
        "surgery evaluate tried --against model --suite loss --text texts -o other-report",
    ],
    "finetune.md": ["surgery recipes copy tiny", "surgery convert --to ssmax model -o operated"],
    "ssmax.md": ["surgery convert --to ssmax --form constant model -o model-recall"],
}

# Folders that a page makes itself.
MADE = {"multiscreen.md": ["model"]}

_FINETUNE = ["budget.tokens=256", "data.sequence_length=32", "data.held_out=0.3"]
# Options that make a command short.
SHORT: dict[str, list[str]] = {
    "finetune": [word for setting in _FINETUNE for word in ("--set", setting)],
    "evaluate": ["--documents", "2", "--length", "64"],
    "screen-sweep": ["--lengths", "64,256"],
    "try": ["--minutes", "600"],
}


def lines_of(page: str) -> list[str]:
    return [*BEFORE.get(page, []), *code_lines((GUIDE / page).read_text(encoding="utf-8"))]


def reason(page: str, line: str) -> str | None:
    return next((why for (name, begin), why in NOT_RUN.items() if name == page and line.startswith(begin)), None)


def ready(line: str) -> list[str]:
    """The words of a command as a reader types them."""
    words = []
    for word in words_of(line.replace("MODEL...", "MODELS")):
        name, mark, value = word.rpartition("=")
        words.append(name + mark + (value if name == "output" else WORDS.get(value, value)))
    command, given = words[1], set(words)
    if {"--help", "--dry-run"} & given and command != "finetune":
        return words
    short = SHORT.get(command, [])
    if command == "convert":
        short = ["--force"]
        if "--calibrate" in given:
            short += ["--lengths", "512"]
            short += [] if "unit" in given else ["--max-loss-increase", "10"]
            short += ["--haystacks", "8"] if "ssmax" in given else []
    if "screening-unit" in given:  # its stages have budgets of their own
        short = ["--set", "stages=[{name: outputs, objective: {name: match}, budget: {steps: 1}}]", *short[2:]]
    if command == "finetune" and {"tiny", "tiny.yaml"} & given:
        short = [word for one in OWN if "tiny.yaml" in given for word in ("--set", one)]
    if command == "finetune" and "--show-config" not in given and "--dry-run" not in given:
        short = [*short, "--force"]
    if command in ("evaluate", "report") and "-o" in given:
        short = [*short, "--force"]
    return [*words, *short]


OWN = ("model=operated", "data.text=texts/training", "output=own")


@pytest.fixture(scope="module")
def workplace(make_source: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the pages speak of: ``model/``, ``models/`` and folders of texts."""
    folder = tmp_path_factory.mktemp("guide")
    made = make_source("llama", max_position_embeddings=1024)
    for place in ("model", "models/one", "models/two"):
        shutil.copytree(made, folder / place)
        save_tiny_tokenizer(folder / place)
    for place in ("texts", "texts/training", "texts/measuring", "others", "held-out"):
        write_paragraphs(folder / place)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_every_command_of_a_page(
    page: str, workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(shutil.copytree(workplace, tmp_path / "work"))
    for name in MADE.get(page, []):
        shutil.rmtree(name)
    for line in lines_of(page):
        if reason(page, line) is None:
            words = ready(line)
            code = console.run(app, words[1:])
            printed = capfd.readouterr()
            assert code == 0, f"{line}\n{' '.join(words)}\n{printed.out[-2000:]}\n{printed.err[-2000:]}"


def test_every_reason_is_of_a_command_in_its_page() -> None:
    for page, begin in NOT_RUN:
        assert any(line.startswith(begin) for line in lines_of(page)), f"{page}: {begin}"


def test_most_commands_run() -> None:
    every = [(page, line) for page in PAGES for line in lines_of(page)]
    assert len(every) > 50
    assert sum(reason(page, line) is not None for page, line in every) < len(every) / 6
