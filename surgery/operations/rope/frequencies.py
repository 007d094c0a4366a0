"""The frequencies of RoPE from their definitions, in double precision, independent of transformers' code."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from surgery.anatomy import Rope
from surgery.operations.rope.options import TYPES, RopeOptions

ORIGINAL_LENGTH_KEY = "original_max_position_embeddings"


def plain(theta: float, dim: int) -> list[float]:
    """theta^(-2i/d) for i = 0..d/2 - 1, in radians per position (Su et al., arXiv 2104.09864, equation 15)."""
    return [theta ** (-2.0 * pair / dim) for pair in range((dim + 1) // 2)]


def frequencies(parameters: Mapping[str, Any], dim: int) -> tuple[list[float], float]:
    """Frequencies and attention factor of RoPE parameters.

    YaRN (Peng et al., arXiv 2309.00071, section 3): a pair with r rotations over the trained length L keeps its
    frequency if r > beta_fast, has it divided by the factor if r < beta_slow, and in between has a mixture that is
    linear in the index of the pair. The index of a pair with r rotations is d ln(L / 2 pi r) / 2 ln theta; as in the
    authors' code, it is rounded outwards at both ends.

    Args:
        parameters: as in transformers' ``rope_parameters``, complete.
        dim: rotated dimensions d of a head.

    Returns:
        The frequency of each pair of dimensions in radians per position, and the factor of cosine and sine.

    Raises:
        ValueError: the operation does not write this type.
    """
    theta = float(parameters["rope_theta"])
    kind = parameters["rope_type"]
    base = plain(theta, dim)
    if kind == "default":
        return base, 1.0
    factor = float(parameters["factor"])
    if kind == "linear":
        return [frequency / factor for frequency in base], 1.0
    if kind != "yarn":
        raise ValueError(f"frequencies of rope type {kind!r} are not known here")
    length = float(parameters["original_max_position_embeddings"])

    def turning(times: float) -> float:
        return dim * math.log(length / (2 * math.pi * times)) / (2 * math.log(theta))

    low = max(math.floor(turning(float(parameters["beta_fast"]))), 0)
    high = min(math.ceil(turning(float(parameters["beta_slow"]))), dim - 1)
    width = high - low if high != low else 0.001
    mixed = []
    for pair, frequency in enumerate(base):
        interpolated = min(max((pair - low) / width, 0.0), 1.0)
        mixed.append(frequency * (1 - interpolated) + frequency / factor * interpolated)
    return mixed, float(parameters["attention_factor"])


def yarn_attention_factor(factor: float) -> float:
    """sqrt(1/t) = 0.1 ln(factor) + 1 (arXiv 2309.00071, equation 22): the factor of queries and of keys."""
    return 0.1 * math.log(factor) + 1.0


def ntk_theta(theta: float, factor: float, dim: int) -> float:
    """theta * factor^(d / (d - 2)): the slowest frequency, i = d/2 - 1, is divided by exactly the factor."""
    return theta * factor ** (dim / (dim - 2))


def changed_parameters(options: RopeOptions, rope: Rope) -> dict[str, Any]:
    """The parameters of a RoPE after the change by resolved options, spelled as in ``rope_parameters``."""
    theta = rope.theta
    if options.type == "theta":
        theta = options.theta or theta * (options.theta_factor or 1.0)
    elif options.type == "ntk":
        theta = ntk_theta(theta, options.factor, rope.dim)
    found: dict[str, Any] = {"rope_type": TYPES[options.type][0], "rope_theta": theta}
    if "partial_rotary_factor" in rope.parameters:
        found["partial_rotary_factor"] = rope.parameters["partial_rotary_factor"]
    if options.type in ("linear", "yarn"):
        found["factor"] = options.factor
    if options.type == "yarn":
        found |= {
            ORIGINAL_LENGTH_KEY: options.original_length,
            "attention_factor": options.attention_factor,
            "beta_fast": options.beta_fast,
            "beta_slow": options.beta_slow,
        }
    return found
