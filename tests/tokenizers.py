"""A tiny tokenizer and tiny texts for the tiny models."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.families import VOCABULARY

_CHARACTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 .,;:()-'\"\n"


def save_tiny_tokenizer(folder: Path) -> None:
    """Save a tokenizer with one token per character, within the vocabulary of the tiny models."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    names = ["<pad>", "<bos>", "<eos>", "<unk>", *_CHARACTERS]
    assert len(names) <= VOCABULARY
    tokenizer = Tokenizer(models.WordLevel({name: index for index, name in enumerate(names)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", unk_token="<unk>"
    ).save_pretrained(folder)


def with_tokenizer(source: Path, folder: Path) -> Path:
    """A copy of a tiny model in a new folder, with the tiny tokenizer."""
    shutil.copytree(source, folder)
    save_tiny_tokenizer(folder)
    return folder


def write_texts(folder: Path, documents: int = 6, words: int = 60) -> None:
    """Write short documents with structure to learn: counting in words, each from another start."""
    numbers = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(documents):
        text = " ".join(numbers[(index + step) % 10] for step in range(words))
        (folder / f"{index}.txt").write_text(text, encoding="utf-8")


def write_rivers(folder: Path) -> None:
    """Write sixteen documents of about 4,000 characters: enough for a trial, which measures on some of them."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(16):
        lines = (f"Paragraph {line} speaks of river {number} and of what is beside it." for line in range(70))
        (folder / f"{number}.txt").write_text("\n\n".join(lines), encoding="utf-8")


def write_paragraphs(folder: Path) -> None:
    """Write documents of many paragraphs, long enough to hide facts in."""
    folder.mkdir(parents=True, exist_ok=True)
    for what in ("rivers", "mills", "bridges"):
        lines = (f"Paragraph {line} speaks of {what} and of what is beside them." for line in range(80))
        (folder / f"{what}.txt").write_text("\n\n".join(lines), encoding="utf-8")
