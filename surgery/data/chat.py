"""Conversations as tokens: formatted by the tokenizer's chat template, with the answers marked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jinja2

from surgery.data.offsets import check_offsets, offsets_of
from surgery.errors import UsageError


def encode_chat(tokenizer: Any, messages: Sequence[Mapping[str, str]], name: str = "") -> tuple[list[int], list[bool]]:
    """Token ids of a conversation, and for each whether it belongs to an assistant's answer (its end mark does).

    If the template marks answers itself (``{% generation %}``), its marks are used. Otherwise an answer is the text
    that the template adds after the generation prompt.

    Args:
        tokenizer: of the model; it needs a chat template.
        messages: each with ``role`` and ``content``.
        name: of the conversation, for error messages.

    Raises:
        UsageError: there is no template, it rejects the messages, it changes earlier messages when later ones follow,
            or the tokenizer does not give the characters of a token.
    """
    template = getattr(tokenizer, "chat_template", None)
    if not template:
        raise UsageError(
            "format: chat needs a chat template, and this tokenizer has none",
            hint="Use an instruct model's tokenizer, or format: text.",
        )
    check_offsets(tokenizer)
    if isinstance(template, str) and "{% generation" in template.replace("{%-", "{%"):
        result = _render(tokenizer, messages, name, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
        return list(result["input_ids"]), [bool(flag) for flag in result["assistant_masks"]]
    text = _render(tokenizer, messages, name, tokenize=False)
    spans: list[tuple[int, int]] = []
    for number, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        # The text before the answer is generated, and after.
        prompt = _render(tokenizer, messages[:number], name, tokenize=False, add_generation_prompt=True)
        answered = _render(tokenizer, messages[: number + 1], name, tokenize=False)
        if not answered.startswith(prompt) or not text.startswith(answered):
            raise UsageError(
                f"{name}: the chat template changes earlier messages when later ones follow, so its answers cannot "
                "be located",
                hint="Use conversations with one answer each, or a template with {% generation %} marks.",
            )
        spans.append((len(prompt), len(answered)))
    ids, places = offsets_of(tokenizer)(text)
    return ids, [end > start and any(start < last and end > first for first, last in spans) for start, end in places]


def _render(tokenizer: Any, messages: Sequence[Mapping[str, str]], name: str, **options: Any) -> Any:
    try:
        return tokenizer.apply_chat_template([dict(message) for message in messages], **options)
    except (jinja2.TemplateError, ValueError, TypeError, IndexError) as error:
        raise UsageError(
            f"{name}: the chat template rejects these messages: {str(error).splitlines()[0]}",
            hint="Check the roles and their order.",
        ) from error
