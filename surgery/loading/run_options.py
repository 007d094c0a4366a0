"""How a model is run: device, dtype, batch size and attention backend."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, field_validator

from surgery.errors import UsageError

if TYPE_CHECKING:
    import torch

Dtype = Literal["auto", "float32", "bfloat16", "float16"]


_DEVICE = re.compile(r"auto|cpu|(cuda|mps|xpu|hpu|npu|mlu|musa|mtia)(:\d+)?")


class RunOptions(BaseModel):
    """Device, dtype, batch size and attention backend: the flags of every command that runs a model."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    device: str = Field(default="auto", description="Device: auto, cpu, cuda, cuda:1, mps ...")
    dtype: Dtype = Field(
        default="auto",
        description="auto (the checkpoint's; float32 where this processor is slow in that), float32, bfloat16, "
        "float16.",
    )
    batch_size: PositiveInt = Field(default=1, description="Sequences per forward pass.")
    attn_implementation: str | None = Field(
        default=None, description="Attention backend of transformers: sdpa, eager, flash_attention_2 ..."
    )
    trust_remote_code: bool = Field(
        default=False, description="Run the code in the folder of the model, for the model or its tokenizer."
    )

    @field_validator("device")
    @classmethod
    def _is_device(cls, device: str) -> str:
        """At once, before anything slow; whether this machine has the device is seen when a model is loaded."""
        check_device(device)
        return device


def check_device(device: str) -> None:
    """Refuse a name that is no device; `pick_device` checks whether this machine has the device.

    Raises:
        UsageError: the name is no device.
    """
    if not _DEVICE.fullmatch(device):
        raise UsageError(f"--device {device}: no device has this name", hint="Pass auto, cpu, cuda, cuda:1 or mps.")


def pick_device(device: str = "auto") -> torch.device:
    """The device of a name; ``auto`` is the first of cuda, mps and cpu that this machine has.

    Raises:
        UsageError: the device is unknown to torch or not on this machine.
    """
    check_device(device)
    import torch

    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UsageError(
            f"--device {device}: {str(error).splitlines()[0]}",
            hint="Pass auto, cpu, or a device that this machine has.",
        ) from error
    return chosen
