"""Loading of models and tokenizers, the same for every command."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from surgery.anatomy import FAMILIES, Family
from surgery.anatomy.anatomy import MODEL_TYPE_PREFIX
from surgery.anatomy.registration import register
from surgery.checkpoint import CONFIG_NAME, load_config
from surgery.checkpoint.tokenizer_code import tokenizer_code
from surgery.errors import CheckpointError, UsageError
from surgery.loading.precision import settled
from surgery.loading.run_options import RunOptions, pick_device

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def check_attention(name: str) -> None:
    """Refuse an attention backend that transformers does not know; kernels of the hub are not checked.

    Raises:
        UsageError: the name is not registered.
    """
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    known = ["eager", *sorted(ALL_ATTENTION_FUNCTIONS.valid_keys())]
    # "paged|name" is a variant of a name, "owner/name" a kernel of the hub.
    if name not in known and not set("|/") & set(name):
        raise UsageError(f"--attn-implementation {name}: not known to transformers", hint=f"Known: {', '.join(known)}.")


def _known_family(folder: Path) -> Family | None:
    model_type = str(load_config(folder / CONFIG_NAME).get("model_type")).removeprefix(MODEL_TYPE_PREFIX)
    return FAMILIES.get(model_type)


def auto_class(folder: Path) -> str:
    """Name of transformers' auto class for a model: a model of several parts has another one."""
    family = _known_family(folder)
    return "AutoModelForCausalLM" if family is None or family.text is None else "AutoModelForImageTextToText"


def check_runs(folder: Path) -> None:
    """Check that the installed transformers can run the family of a model folder.

    Raises:
        CheckpointError: the family's class in this version does not run, converted or not.
    """
    import transformers

    family = _known_family(folder)
    if family is not None and (reason := family.fails.get(transformers.__version__)):
        raise CheckpointError(
            f"{folder.name}: {family.architecture} does not run in transformers {transformers.__version__}, converted "
            f"or not: {reason}",
            hint="Install another version of transformers.",
        )


def load_model(folder: Path, options: RunOptions | None = None) -> PreTrainedModel:
    """Load a causal language model from a folder, in evaluation mode. Converted checkpoints need no remote code.

    Args:
        folder: a model folder, converted or not.
        options: device, dtype and attention backend; by default the best device, and there the checkpoint's dtype, or
            float32 on a processor that is slow in it.

    Raises:
        CheckpointError: the folder cannot be loaded by transformers, or the installed one cannot run its family.
        UsageError: the device or the attention implementation is unknown.
    """
    import torch
    import transformers

    check_runs(folder)
    register()
    options = settled(options or RunOptions(), [folder])
    device = pick_device(options.device)
    dtype = "auto" if options.dtype == "auto" else getattr(torch, options.dtype)
    arguments: dict[str, object] = {"dtype": dtype, "local_files_only": True}
    if options.attn_implementation is not None:
        check_attention(options.attn_implementation)
        arguments["attn_implementation"] = options.attn_implementation
    # Without a value, transformers would ask on the terminal and wait.
    arguments["trust_remote_code"] = options.trust_remote_code
    try:
        with no_bar():
            model = getattr(transformers, auto_class(folder)).from_pretrained(folder, **arguments)
    except (ValueError, OSError, ImportError, KeyError) as error:
        raise CheckpointError(f"{folder.name}: transformers could not load the model: {error}") from error
    return model.to(device).eval()


@contextmanager
def no_bar() -> Iterator[None]:
    """Without transformers' bars for reading and writing weights, which the commands show in their own."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


class TokenizerCodeError(CheckpointError):
    """A tokenizer needs code of its own, and nobody allowed to run it."""

    def __init__(self, folder: Path, code: str) -> None:
        is_there = (folder / code).is_file()
        where = "in its folder" if is_there else "which is missing from its folder"
        super().__init__(
            f"{folder.name}: the tokenizer needs code of its own ({code}, {where}), and surgery does not run the code "
            "of a model unless told to",
            hint=f"Read {code}, then pass --trust-remote-code (in Python: RunOptions(trust_remote_code=True))."
            if is_there
            else f"Put {code} of the model's repository into the folder, read it, and pass --trust-remote-code.",
        )


def load_tokenizer(folder: Path, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model folder.

    Raises:
        TokenizerCodeError: the tokenizer needs its own code, which may not run or is missing.
        CheckpointError: the folder has no tokenizer, or transformers cannot load it.
    """
    from transformers import AutoTokenizer

    register()
    hint = "Copy the tokenizer's files (tokenizer.json, tokenizer_config.json) into the model's folder."
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=trust_remote_code)
    except (ValueError, OSError, ImportError, KeyError) as error:
        code = tokenizer_code(folder)
        if code is not None and not (trust_remote_code and (folder / code).is_file()):
            raise TokenizerCodeError(folder, code) from error
        raise CheckpointError(f"{folder.name}: the tokenizer could not be loaded: {error}", hint=hint) from error
    # Without files, transformers makes a tokenizer without a vocabulary from the model type.
    if not tokenizer("words", add_special_tokens=False)["input_ids"]:
        raise CheckpointError(f"{folder.name} has no tokenizer", hint=hint)
    return tokenizer


def recompute(model: Any, wanted: bool) -> None:
    """Switch gradient checkpointing on or off: layers recompute their activations in the backward pass, or keep them.

    Raises:
        UsageError: the model does not support it.
    """
    verb = "enable" if wanted else "disable"
    switch = getattr(model, f"activation_checkpointing_{verb}", None)  # the name in new versions
    if switch is None:
        switch = getattr(model, f"gradient_checkpointing_{verb}")
    if not wanted:
        switch()
        return
    try:
        # Re-entrant checkpointing gives no gradient if the inputs have none, as with frozen embeddings.
        switch({"use_reentrant": False})
    except ValueError as error:
        raise UsageError(
            f"gradient checkpointing: {error}",
            hint="Shorten the sequences; in a recipe, set gradient_checkpointing to false.",
        ) from error
