"""The tokenizer of a new model: copied from a folder, trained on texts, or absent."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from surgery.checkpoint import load_json, quote
from surgery.checkpoint.source import check_folder
from surgery.checkpoint.tokenizer_files import is_tokenizer_file
from surgery.errors import UsageError
from surgery.models.base import Vocabulary

if TYPE_CHECKING:
    from tokenizers import Tokenizer

TOKENIZER_NAME = "tokenizer.json"
SETTINGS_NAME = "tokenizer_config.json"
END_OF_TEXT = "<|endoftext|>"
# Every byte is a token, so that no text is unknown; one more ends a document.
LEAST = 257
_SPECIAL = ("bos_token", "eos_token", "pad_token")


@dataclass(frozen=True)
class VocabularySource:
    """What a user said about the tokenizer; exactly one of a size, a folder, and texts with a size.

    Attributes:
        size: number of tokens; of a trained tokenizer the largest number.
        folder: a model folder whose tokenizer is copied.
        texts: files, folders and globs of text to train a tokenizer on.
    """

    size: int | None = None
    folder: Path | None = None
    texts: tuple[str, ...] = ()

    def check(self) -> None:
        """Check the choice, without reading any text.

        Raises:
            UsageError: none or two of them are given, a size is too small, a text does not exist, or the folder has no
                tokenizer.json.
        """
        from surgery.data.documents import match_files

        if self.folder is not None and (self.texts or self.size is not None):
            raise UsageError("--tokenizer has a vocabulary of its own: leave --vocab-size and --train-tokenizer out")
        if self.folder is None and self.size is None:
            raise UsageError(
                "--train-tokenizer needs --vocab-size" if self.texts else "the new model has no vocabulary",
                hint="Pass --vocab-size 8192." if self.texts else "Pass --tokenizer FOLDER or --vocab-size N.",
            )
        if self.texts and self.size is not None and self.size < LEAST:
            raise UsageError(f"--vocab-size {self.size}: a trained tokenizer has at least {LEAST} tokens")
        if self.size is not None and self.size < 1:
            raise UsageError(f"--vocab-size {self.size}: must be 1 or more")
        for pattern in self.texts:
            if not match_files(pattern):
                raise UsageError(f"--train-tokenizer {quote(pattern)}: no text file matches")
        if self.folder is not None:
            _check_tokenizer(self.folder)

    def planned(self) -> Vocabulary:
        """The vocabulary as far as it is known before a tokenizer is trained."""
        if self.folder is not None:
            return _vocabulary(_read(self.folder), _settings(self.folder))
        assert self.size is not None
        return Vocabulary(self.size, {})

    def described(self) -> str:
        """The choice in words."""
        if self.folder is not None:
            return f"{self.planned().size:,} tokens, the tokenizer of {self.folder.name}"
        if self.texts:
            return f"up to {self.size:,} tokens, a tokenizer trained on {', '.join(self.texts)}"
        return f"{self.size:,} tokens, no tokenizer"

    def write(self, folder: Path, length: int) -> Vocabulary:
        """Write the files of the tokenizer into the folder of the model, if there are any.

        Args:
            folder: of the model.
            length: tokens per sequence.

        Raises:
            UsageError: the texts cannot be read.
        """
        if self.folder is not None:
            for path in sorted(self.folder.iterdir()):
                if path.is_file() and is_tokenizer_file(path.name):
                    shutil.copyfile(path, folder / path.name)
            return self.planned()
        if not self.texts:
            return self.planned()
        assert self.size is not None
        trained = train_tokenizer(self.texts, self.size)
        _save(trained, folder, length)
        return _vocabulary(trained, dict.fromkeys(_SPECIAL, END_OF_TEXT))


def train_tokenizer(texts: Sequence[str], size: int) -> Tokenizer:
    """A byte-level BPE tokenizer with one token per digit.

    Args:
        texts: files, folders and globs.
        size: largest number of tokens; short texts give fewer.

    Raises:
        UsageError: the texts cannot be read.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    from surgery.data import read_documents

    documents = read_documents(texts)

    def pieces() -> Iterator[str]:
        yield from (document.text for document in documents)

    tokenizer = Tokenizer(models.BPE())
    # Digits apart: numbers are then read digit by digit, whatever numbers the texts had.
    splits: Any = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(splits)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(pieces(), trainer)
    return tokenizer


def _save(tokenizer: Tokenizer, folder: Path, length: int) -> None:
    from transformers import PreTrainedTokenizerFast

    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=length, **dict.fromkeys(_SPECIAL, END_OF_TEXT)
    ).save_pretrained(folder)


def _check_tokenizer(folder: Path) -> None:
    check_folder(folder)
    if not (folder / TOKENIZER_NAME).is_file():
        raise UsageError(
            f"--tokenizer {quote(str(folder))}: the folder has no {TOKENIZER_NAME}",
            hint="Give a model folder with a fast tokenizer, or train one with --train-tokenizer TEXTS.",
        )


def _read(folder: Path) -> Tokenizer:
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_file(str(folder / TOKENIZER_NAME))
    except Exception as error:  # the library raises bare exceptions
        raise UsageError(f"--tokenizer {quote(str(folder))}: {TOKENIZER_NAME} cannot be read: {error}") from error


def _settings(folder: Path) -> Mapping[str, Any]:
    return load_json(folder / SETTINGS_NAME) if (folder / SETTINGS_NAME).is_file() else {}


def _vocabulary(tokenizer: Tokenizer, settings: Mapping[str, Any]) -> Vocabulary:
    ids = tokenizer.get_vocab(with_added_tokens=True)
    special = {}
    for name in _SPECIAL:
        given = settings.get(name)
        token = given.get("content") if isinstance(given, Mapping) else given
        if isinstance(token, str) and token in ids:
            special[f"{name}_id"] = ids[token]
    return Vocabulary(max(ids.values()) + 1, special)
