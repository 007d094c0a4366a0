"""What the checks run on: the tokenizer of a checkpoint, a text, its tokens; and the count of what they do."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from surgery.loading import RunOptions, load_tokenizer
from surgery.loading.model import TokenizerCodeError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

Progress = Callable[[str, int, int], None]

# Any text serves that is long enough for the equalities.
TEXT = """A model reads a text one token at a time, and at each token it decides where to look. With softmax the weights
of everything it can see add up to one, so the more there is to see, the less is left for each. In a short note the one
sentence that matters stands out; in a long report the same sentence drowns, not because it was forgotten but because
ten thousand others each take a little. The remedy that is tested here lets every head learn how much sharper it should
look as the text grows: it multiplies its question by a number that grows with the logarithm of what it can see. Some
heads want that, others do not, and the numbers that they learn say which. """


def counting(say: Progress, label: str, total: int) -> Callable[[str], None]:
    """Numbers the things that a check names as it goes on; there may be more of them than ``total``."""
    numbers = itertools.count()
    return lambda name: say(f"{label}: {name}", min(next(numbers), total), total)


def find_tokenizer(folder: Path, run: RunOptions) -> tuple[PreTrainedTokenizerBase | None, str | None]:
    """The tokenizer, or None; and why a tokenizer that is there is not used."""
    if not any((folder / name).is_file() for name in ("tokenizer_config.json", "tokenizer.json")):
        return None, None
    try:
        return load_tokenizer(folder, trust_remote_code=run.trust_remote_code), None
    except TokenizerCodeError as error:
        return None, f"{error.message.partition(': ')[2]}. {error.hint} The other checks used random tokens"


def text_tokens(tokenizer: PreTrainedTokenizerBase | None, length: int, vocabulary: int) -> torch.Tensor:
    """``(1, length)``: :data:`TEXT`, repeated; without a tokenizer, random tokens from a fixed seed."""
    import torch

    if tokenizer is not None:
        found = tokenizer(TEXT, add_special_tokens=False)["input_ids"]
        if found and max(found) < vocabulary:
            return torch.tensor([(found * (length // len(found) + 1))[:length]])
    return torch.randint(0, vocabulary, (1, length), generator=torch.Generator().manual_seed(0))
