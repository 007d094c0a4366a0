"""The options of a RoPE change, and its types."""

from __future__ import annotations

from types import MappingProxyType
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from surgery.operations.base import OperationOptions

TypeName = Literal["yarn", "ntk", "linear", "theta"]
Positive = Annotated[float, Field(gt=0, le=1e12, allow_inf_nan=False)]

# What each type does to the frequency of a pair of dimensions, and how transformers calls the result. Its `dynamic` is
# left out: it changes the frequencies as a text grows, and keys in the cache keep the old ones, so that a text read
# token by token is not what it is read at once.
TYPES: MappingProxyType[TypeName, tuple[str, str]] = MappingProxyType(
    {
        "yarn": ("yarn", "slow frequencies divided by the factor, fast ones kept, attention sharpened a little"),
        "ntk": ("default", "theta times factor^(d / (d - 2)), which divides the slowest frequency by the factor"),
        "linear": ("linear", "all frequencies divided by the factor: positions are interpolated"),
        "theta": ("default", "another theta"),
    }
)
_OF_TYPE: dict[str, TypeName] = {
    "theta": "theta",
    "theta_factor": "theta",
    "attention_factor": "yarn",
    "beta_fast": "yarn",
    "beta_slow": "yarn",
}


class RopeOptions(OperationOptions):
    """A change of RoPE, for texts ``factor`` times as long.

    Attributes:
        type: how frequencies change.
        factor: by how much max_position_embeddings grows, and by how much the type stretches.
        theta: type ``theta``: the new base.
        theta_factor: type ``theta``: the new base as a multiple of the old one.
        attention_factor: type ``yarn``: what queries and keys are each multiplied by; by default 0.1 ln factor + 1.
        beta_fast: type ``yarn``: dimensions that turn so often over the trained length, or more, stay as they are.
        beta_slow: type ``yarn``: dimensions that turn so often, or less, are interpolated in full.
        replace: put the change in place of a scaling that the source already has.
        original_length: with ``replace``: the length before that scaling, where config.json does not say.
        before: filled in by the plan: max_position_embeddings and rope_parameters of the source. It is what the
            change can be switched off to, and the length that other operations count as trained.
    """

    name: Literal["rope"] = "rope"
    type: TypeName = "yarn"
    factor: Annotated[float, Field(gt=1, le=1024, allow_inf_nan=False)] = 2.0
    theta: Positive | None = None
    theta_factor: Positive | None = None
    attention_factor: Positive | None = None
    beta_fast: Positive | None = None
    beta_slow: Positive | None = None
    replace: bool = False
    original_length: Annotated[int, Field(ge=2, le=2**31)] | None = None
    before: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _nothing_without_effect(self) -> RopeOptions:
        for name, kind in _OF_TYPE.items():
            if getattr(self, name) is not None and self.type != kind:
                raise ValueError(f"{name} does nothing with type {self.type!r}; it belongs to type {kind!r}")
        if self.type == "theta" and (self.theta is None) == (self.theta_factor is None) and self.before is None:
            raise ValueError("type 'theta' needs exactly one of theta and theta_factor")
        if self.original_length is not None and not self.replace and self.before is None:
            raise ValueError("original_length does nothing without replace")
        if (self.beta_fast or 32.0) <= (self.beta_slow or 1.0):
            raise ValueError("beta_fast must be greater than beta_slow (32 and 1 unless given)")
        return self
