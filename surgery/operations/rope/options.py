"""The options of a RoPE change, and its types."""

from __future__ import annotations

from types import MappingProxyType
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from surgery.flag import NO_FLAG, Flag
from surgery.operations.base import OperationOptions

TypeName = Literal["yarn", "ntk", "linear", "theta"]
Positive = Annotated[float, Field(gt=0, le=1e12, allow_inf_nan=False)]

# For each type, the name of the result in transformers, and its effect on the frequency of a pair of dimensions. The
# type `dynamic` is left out: it changes the frequencies as a text grows, but cached keys keep the old ones, so a text
# read token by token gives other logits than the same text read at once.
TYPES: MappingProxyType[TypeName, tuple[str, str]] = MappingProxyType(
    {
        "yarn": ("yarn", "slow frequencies divided by the factor, fast ones kept, attention slightly sharper"),
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
    """A change of RoPE, for texts ``factor`` times as long."""

    name: Literal["rope"] = "rope"
    type: TypeName = Field(
        default="yarn",
        description="How frequencies change. yarn: slow ones are divided by the factor, fast ones are kept; ntk: theta "
        "grows until the slowest is divided by the factor; linear: all are divided by the factor; theta: set by "
        "--theta or --theta-factor.",
    )
    factor: float = Field(
        default=2.0,
        gt=1,
        le=1024,
        allow_inf_nan=False,
        description="The maximum text length is multiplied by this.",
    )
    theta: Positive | None = Field(default=None, description="Type theta: the new theta.")
    theta_factor: Positive | None = Field(default=None, description="Type theta: theta is multiplied by this.")
    attention_factor: Annotated[Positive | None, Flag(absent="0.1 ln factor + 1")] = Field(
        default=None, description="Type yarn: queries and keys are multiplied by this."
    )
    beta_fast: Annotated[Positive | None, Flag(absent="32")] = Field(
        default=None, description="Type yarn: dimensions with more rotations than this are not scaled."
    )
    beta_slow: Annotated[Positive | None, Flag(absent="1")] = Field(
        default=None,
        description="Type yarn: dimensions with fewer rotations than this are scaled in full.",
    )
    replace: bool = Field(default=False, description="Replace the RoPE scaling that the source already has.")
    original_length: Annotated[int | None, Flag(absent="as config.json says")] = Field(
        default=None, ge=2, le=2**31, description="With --replace: the text length before the scaling of the source."
    )
    before: Annotated[dict[str, Any] | None, NO_FLAG] = Field(
        default=None,
        description="Set by the plan: max_position_embeddings and rope_parameters of the source. Switching the change "
        "off restores them, and other operations take the trained length from them.",
    )

    @model_validator(mode="after")
    def _nothing_without_effect(self) -> RopeOptions:
        for name, kind in _OF_TYPE.items():
            if getattr(self, name) is not None and self.type != kind:
                raise ValueError(f"{name} has no effect with type {self.type!r}; it belongs to type {kind!r}")
        if self.type == "theta" and (self.theta is None) == (self.theta_factor is None) and self.before is None:
            raise ValueError("type 'theta' needs exactly one of theta and theta_factor")
        if self.original_length is not None and not self.replace and self.before is None:
            raise ValueError("original_length has no effect without replace")
        if (self.beta_fast or 32.0) <= (self.beta_slow or 1.0):
            raise ValueError("beta_fast must be greater than beta_slow (32 and 1 unless given)")
        return self
