"""The files of a tokenizer in a model folder, by their names."""

_BEGINNINGS = ("tokenizer", "special_tokens", "added_tokens", "vocab", "merges", "chat_template", "spiece")


def is_tokenizer_file(name: str) -> bool:
    """Whether a file of a model folder belongs to the tokenizer."""
    return "/" not in name and name.startswith(_BEGINNINGS)
