"""Tensors that the model needs and the source does not hold, as far as headers and config.json show."""

from __future__ import annotations

import re
from collections import Counter

from surgery.anatomy import Anatomy
from surgery.checkpoint import Checkpoint
from surgery.errors import CheckpointError

# From this many layers on, one layer that lacks a tensor of all others is an exception.
_ENOUGH_LAYERS = 3


def check_complete(checkpoint: Checkpoint, anatomy: Anatomy) -> None:
    """Refuse a source that lacks a tensor: transformers would initialise it at random, a converted model cannot load.

    Raises:
        CheckpointError: the output projection is missing and not tied to the embedding, or one layer lacks a tensor
            that all other layers of its kind hold.
    """
    if anatomy.family.unverified:
        return  # the names that its tensors have on disk are not known
    heads = {anatomy.family.head, "lm_head"}
    if not anatomy.tied_embeddings and not any(heads & set(name.split(".")) for name in checkpoint.tensors):
        raise CheckpointError(
            f"the tensors hold no {anatomy.family.head}.weight, but config.json does not tie the output projection to "
            "the embedding: transformers would initialise it at random",
            hint="Set tie_word_embeddings to true in config.json if the embedding is the output projection. Otherwise "
            "get the complete weights.",
        )
    if "quantization_config" not in checkpoint.config and (missing := _missing_in_one_layer(checkpoint, anatomy)):
        raise CheckpointError(
            f"the tensors hold no {missing}, which every other layer of this kind has: transformers would initialise "
            "it at random",
            hint="Get the complete weights.",
        )


def _missing_in_one_layer(checkpoint: Checkpoint, anatomy: Anatomy) -> str | None:
    """A tensor that one layer lacks, if it holds no tensor that the other layers of its kind lack."""
    stem = anatomy.layers[0].module.partition(".0.")[0]
    of_layer = re.compile(rf"{re.escape(stem)}\.(\d+)\.(.+)")
    held: dict[int, set[str]] = {layer.index: set() for layer in anatomy.layers}
    for name in checkpoint.tensors:
        if (match := of_layer.fullmatch(name)) and int(match[1]) in held:
            held[int(match[1])].add(match[2])
    for kind in {layer.kind for layer in anatomy.layers}:
        layers = [layer.index for layer in anatomy.layers if layer.kind == kind]
        counts = Counter(frozenset(held[index]) for index in layers)
        if len(layers) < _ENOUGH_LAYERS or len(counts) != 2:
            continue
        (usual, _), (odd, number) = counts.most_common()
        if number == 1 and odd < usual:
            index = next(index for index in layers if held[index] == odd)
            return f"{stem}.{index}.{min(usual - odd)}"
    return None
