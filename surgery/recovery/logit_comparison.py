"""The logits of a merged checkpoint beside those of the parts that were merged, before the output appears."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from surgery.checkpoint import Checkpoint
from surgery.errors import VerificationError
from surgery.operations.parameters import is_operation
from surgery.result_table import ShownAsRecord

if TYPE_CHECKING:
    import torch

# Called with finished steps, all steps, and the step that begins, in words.
OnProgress = Callable[[int, int, str], None]

_PROBE = (2, 48)
_STEPS = 4
# Largest relative difference of the logits (root mean square). Rounding weights to bfloat16 costs about 0.5%.
_TOLERANCE = {"F32": 1e-5, "F16": 2e-2, "BF16": 5e-2}


@dataclass(frozen=True)
class MergeResult(ShownAsRecord):
    """The result of a merge; ``logit_difference`` is relative to the unmerged model (root mean square).

    ``base`` is the base of an adapter, or the converted checkpoint that was merged. ``dropped`` names the operations
    that changed nothing, and that the output no longer has.
    """

    output: Path
    base: str
    changed_tensors: int
    operation_tensors: int
    logit_difference: float
    tolerance: float
    dropped: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """For its table."""
        return f"merged into {self.output}"

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {**asdict(self), "output": str(self.output)}


class MergeSteps:
    """The steps of a merge, told as each begins."""

    def __init__(self, on_progress: OnProgress | None) -> None:
        self._tell, self._done = on_progress, 0

    def __call__(self, what: str) -> None:
        """A step begins."""
        if self._tell is not None:
            self._tell(self._done, _STEPS, what)
        self._done += 1


def probe_tokens(checkpoint: Checkpoint, own: Sequence[int] = ()) -> torch.Tensor:
    """Tokens for the comparison, ``(2, tokens)``: random tokens, and ``own`` ones."""
    import torch

    rows = sorted(set(own))
    text = checkpoint.config.get("text_config")
    size = (text if isinstance(text, dict) else checkpoint.config).get("vocab_size")
    count = size if isinstance(size, int) else max([1, *rows]) + 1
    tokens = torch.randint(0, count, _PROBE, generator=torch.Generator().manual_seed(0))
    return torch.cat([tokens, torch.tensor(rows, dtype=torch.long).expand(_PROBE[0], -1)], 1)


def logits_of(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    """Logits in float32 on the CPU, ``(2, tokens, vocabulary)``."""
    import torch

    with torch.no_grad():
        found: torch.Tensor = model(input_ids=tokens.to(model.device), use_cache=False).logits.float().cpu()
    return found


def tolerance_of(checkpoint: Checkpoint) -> float:
    """The largest relative difference that rounding to the dtypes of the weights explains."""
    dtypes = {info.dtype for name, info in checkpoint.tensors.items() if not is_operation(name)}
    return max(_TOLERANCE.get(dtype, 1e-2) for dtype in dtypes)


def compare_logits(merged: Any, tokens: torch.Tensor, expected: torch.Tensor, tolerance: float, instead: str) -> float:
    """The relative difference of a merged model's logits (root mean square).

    Args:
        merged: the model, loaded from the staged folder.
        tokens: from `probe_tokens`.
        expected: logits of the unmerged model.
        tolerance: from `tolerance_of`.
        instead: what the user can do if they differ.

    Raises:
        VerificationError: it is above the tolerance.
    """
    again = logits_of(merged, tokens)
    found = float((again - expected).square().mean().sqrt() / expected.square().mean().sqrt())
    if not found <= tolerance:
        raise VerificationError(
            f"logits of the merged checkpoint differ from those of the unmerged model by {found:.2e}, more than "
            f"{tolerance:.0e}; nothing was written",
            hint=f"{instead}, and report this.",
        )
    return found
