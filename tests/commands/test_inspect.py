"""What ``inspect`` says of layers that an operation is for only if asked, or never; and that it fits a terminal."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from surgery.checkpoint import NewTensor, write_safetensors
from surgery.commands import console
from tests.anatomy.builders import bare_source

LINEAR = {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6}
NEAR = {"rope_type": "default", "rope_theta": 1e4}


def hybrid(folder: Path) -> Path:
    """Attention in layers 0 and 101 of 102."""
    bare_source(folder, "bamba", num_hidden_layers=102)
    tensor = NewTensor("F32", (64, 1), bytes(256))
    names = ["lm_head.weight", *(f"model.layers.{layer}.self_attn.q_proj.weight" for layer in (0, 101))]
    (folder / "model.safetensors").unlink()
    write_safetensors(folder / "model.safetensors", dict.fromkeys(names, tensor), {"format": "pt"})
    return folder


def source(folder: Path, kind: str) -> Path:
    """One of each way in which layers may differ."""
    if kind == "hybrid":
        return hybrid(folder)
    changes: dict[str, dict[str, Any]] = {
        "llama": {"num_hidden_layers": 126, "num_attention_heads": 128, "hidden_size": 512},
        "gemma2": {"sliding_window": 4096},
        "gemma3_text": {"sliding_window": 1024, "num_hidden_layers": 26},
        "gemma3_text scaled": {
            "sliding_window": 1024,
            "num_hidden_layers": 6,
            "rope_parameters": {"full_attention": LINEAR, "sliding_attention": NEAR},
        },
        "llama4_text": {"attention_chunk_size": 512},
        "mistral": {"sliding_window": 16},
        "gpt_oss": {},
        "gpt2": {},
    }
    return bare_source(folder, kind.split(maxsplit=1)[0], **changes[kind])


KINDS = ["llama", "gemma2", "gemma3_text", "gemma3_text scaled", "llama4_text", "mistral", "gpt_oss", "gpt2", "hybrid"]


def shown(surgery: Any, monkeypatch: pytest.MonkeyPatch, folder: Path, width: int = 80) -> list[str]:
    monkeypatch.setattr(console, "out", Console(width=width))
    ran = surgery("inspect", folder)
    assert ran.code == 0, ran.err
    return [line.rstrip() for line in ran.out.splitlines()]


@pytest.mark.parametrize("kind", KINDS)
def test_a_terminal_of_80_columns_holds_it(
    surgery: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    lines = shown(surgery, monkeypatch, source(tmp_path / "model", kind))
    assert all(len(line) <= 80 for line in lines if ": surgery " not in line), lines
    table = lines[lines.index("Attention") + 1 :]
    table = table[: next(number for number, line in enumerate(table) if line.startswith("└")) + 1]
    assert table[0].endswith("┓") and table[-1].endswith("┘") and len({len(line) for line in table}) == 1
    cells = [cell.strip() for line in table[3:-1] for cell in line.strip("│").split("│")]
    words = {"applies", "if asked", "never", "full", "sliding", "chunked", "none", "-"}
    assert all(cell.split(" (")[0] in words or cell.replace("-", "").isdigit() for cell in cells), cells
    # Every number in the table stands below it, once.
    numbers = {cell[cell.index("(") :] for cell in cells if "(" in cell}
    assert {line.split()[0] for line in lines if line.startswith("(")} == numbers


def test_a_narrow_terminal_breaks_between_words(surgery: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = shown(surgery, monkeypatch, source(tmp_path / "model", "gemma3_text"), width=64)
    table = [line for line in lines if line.startswith("│")]
    assert {len(line) for line in table} == {len(table[0])} and len(table[0]) <= 64
    words = {word for line in table for word in line.replace("│", " ").split() if word.isalpha()}
    assert words == {"sliding", "full", "applies", "if", "asked"}


@pytest.mark.parametrize("kind", KINDS)
def test_every_next_command_can_be_planned(
    surgery: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    lines = shown(surgery, monkeypatch, source(tmp_path / "model", kind), width=200)
    texts = tmp_path / "words.txt"
    texts.write_text("A word and another. " * 40)
    commands = [line.partition(": surgery ")[2] for line in lines if ": surgery " in line]
    assert commands and not any("TEXTS" in line for line in lines if line.startswith("Next: "))
    for command in commands:
        if command.startswith("try "):  # needs a model that runs
            continue
        ran = surgery(*shlex.split(command.replace("TEXTS", str(texts))), "--dry-run", "-o", tmp_path / "out")
        assert ran.code == 0, (command, ran.err)


def test_next_lines_are_complete_where_texts_are_at_hand(
    surgery: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "words.txt").write_text("A word and another. " * 40)
    folder = source(tmp_path / "model", "llama")
    monkeypatch.chdir(tmp_path)
    lines = [line for line in shown(surgery, monkeypatch, folder, width=200) if ": surgery " in line]
    assert lines[:2] == [
        "Next: surgery try model --text texts",
        "Next: surgery convert --to ssmax model --calibrate texts",
    ]


def test_if_asked_and_never_are_told_apart(surgery: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = source(tmp_path / "model", "llama4_text")
    layers = surgery("inspect", folder, "--json").document()["layers"]
    assert layers[0]["choice"] == {"ssmax": "if asked", "screening": "if asked", "rope": "never"}
    assert layers[3]["choice"] == {"ssmax": "never", "screening": "default", "rope": "never"}
    assert "every chunk of 512 keys" in layers[0]["operations"]["ssmax"]
    assert layers[3]["operations"]["screening"] is None
    lines = shown(surgery, monkeypatch, folder)
    assert f"With texts of yours: surgery convert --to ssmax {folder} --layers chunked --calibrate TEXTS" in lines
    assert "(1) n starts again at every chunk of 512 keys; --layers chunked asks for it" in lines
    assert any(line.startswith("rope never: ") for line in lines)


def test_what_keeps_an_operation_from_every_layer_is_one_line(
    surgery: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = source(tmp_path / "model", "mistral")
    lines = shown(surgery, monkeypatch, folder, width=160)
    assert "ssmax if asked: n saturates at the sliding window of 16 keys; --layers sliding asks for it" in lines
    assert f"With texts of yours: surgery convert --to ssmax {folder} --layers sliding --calibrate TEXTS" in lines
    assert f"Next: surgery convert --to rope {folder} --layers all" in lines
    scaled = source(tmp_path / "scaled", "gemma3_text scaled")
    said = "\n".join(shown(surgery, monkeypatch, scaled, width=160))
    assert "already scaled (linear); --replace asks for it" in said and "--to rope" not in said, "which is meant?"


def test_what_layers_have_by_number_where_they_differ(tmp_path: Path, surgery: Any) -> None:
    folder = bare_source(tmp_path / "model")
    query = NewTensor("F32", (64, 1), bytes(256))
    norm = NewTensor("F32", (2,), bytes(8))
    stem = "model.layers.{}.self_attn."
    tensors = {stem.format(layer) + "q_proj.weight": query for layer in range(4)}
    tensors |= {stem.format(layer) + "q_norm.weight": norm for layer in (0, 1, 3)}
    (folder / "model.safetensors").unlink()
    write_safetensors(folder / "model.safetensors", tensors, {"format": "pt"})
    assert "of each head (layers 0-1, 3); none (layers 2)" in surgery("inspect", folder).out


@pytest.mark.parametrize("command", [["verify"], ["revert", "-o", "out"], ["refresh"], ["merge", "-o", "out"]])
def test_a_command_that_takes_folders_alone_says_nothing_of_the_form_of_hub_ids(
    surgery: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    ran = surgery(command[0], "org/name", *command[1:])
    assert ran.code == 2 and "there is no folder 'org/name'" in ran.err and "org/name." not in ran.err
    assert "A folder is required here" in ran.err
    assert "has the form org/name" in surgery("inspect", "./nowhere").err
    # An interrupted replacement is still told.
    (tmp_path / "model.replaced-1").mkdir()
    assert "model.replaced-1" in surgery(command[0], "model", *command[1:]).err
