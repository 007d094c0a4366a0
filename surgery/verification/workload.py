"""What a verification repeats, and how long it takes, known before it runs. Needs no torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from surgery.anatomy import read_anatomy
from surgery.checkpoint import Checkpoint, open_checkpoint, resolve
from surgery.conversion.records import read_plan
from surgery.loading.pace import ModelSize, duration, measure_pace, model_size
from surgery.result_table import ResultTable, ShownAsTable
from surgery.verification.new_model import TOKENS, is_new, refuse_comparison

# Bytes per second of reading and comparing files, and of placing weights in memory.
_COMPARED, _LOADED = 8e8, 1.5e9
# Seconds of importing torch and transformers, in this process and in the fresh one.
_IMPORT = 3.5
FRESH_TOKENS = 32
FOREIGN_TOKENS = 32
ABLATION_TOKENS = 16
# Sequences of the loss check, and their tokens where no length is given.
LOSS_SEQUENCES = 8
LOSS_LENGTH = 512


@dataclass(frozen=True)
class Repetitions:
    """How much of the same is computed. The checks themselves are always the same.

    Attributes:
        length: tokens of the comparison with the source.
        presented: tokens of the row that is presented in different ways.
        measures_source: the operated-off model is measured in every presentation; else only where the operated one
            exceeds the bound that needs no measuring.
    """

    length: int
    presented: int
    measures_source: bool

    @staticmethod
    def choose(thorough: bool, length: int | None) -> Repetitions:
        """The default or the thorough ones; a ``length`` replaces that of either."""
        own = THOROUGH if thorough else QUICK
        return own if length is None else Repetitions(length, own.presented, own.measures_source)


QUICK = Repetitions(length=128, presented=32, measures_source=False)
THOROUGH = Repetitions(length=512, presented=48, measures_source=True)


@dataclass(frozen=True)
class Step:
    """A part of a verification: what it does, and about how many seconds it takes."""

    what: str
    seconds: float


@dataclass(frozen=True)
class VerificationPlan(ShownAsTable):
    """What ``verify`` would do.

    Attributes:
        model: name of the folder.
        against: the source, as it was given.
        steps: in their order, with an estimate for the processor of this machine.
    """

    model: str
    against: str | None
    steps: tuple[Step, ...]

    @property
    def seconds(self) -> float:
        """Of all steps."""
        return sum(step.seconds for step in self.steps)

    @property
    def estimate(self) -> str:
        """The time in words."""
        return duration(self.seconds)

    def to_table(self) -> ResultTable:
        """One row for each step."""
        rows = tuple((step.what, step.seconds) for step in self.steps)
        return ResultTable(f"verify {self.model}", ("step", "seconds"), rows, (self.estimate,))

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {**asdict(self), "seconds": self.seconds, "estimate": self.estimate}


def plan_verification(
    model: str | Path,
    *,
    against: str | Path | None = None,
    revision: str | None = None,
    files_only: bool = False,
    layers: int | None = None,
    length: int | None = None,
    thorough: bool = False,
    with_loss: bool = False,
) -> VerificationPlan:
    """The steps of a verification with an estimate of their time; no model runs.

    Args:
        model, against, revision, files_only, layers, length, thorough: as for ``verify``.
        with_loss: the loss is compared too.

    Raises:
        PlanRefusedError: the folder was not converted by this tool.
        CheckpointError: the folder, or the source, is broken.
    """
    folder = Path(model).expanduser()
    if is_new(folder):
        refuse_comparison(folder, against=against, layers=layers, with_loss=with_loss)
        return VerificationPlan(folder.name, None, tuple(_of_new(open_checkpoint(folder), files_only=files_only)))
    plan = read_plan(folder, check_hash=False)
    checkpoint = open_checkpoint(folder)
    source = open_checkpoint(resolve(against, revision)) if against is not None else None
    compared = checkpoint.total_bytes + (source.total_bytes if source is not None else 0)
    steps = [Step("read and compare the files", compared / _COMPARED)]
    if not files_only:
        repetitions = Repetitions.choose(thorough, length)
        steps += _running(checkpoint, plan, repetitions, compares=source is not None, layers=layers)
        if with_loss:
            steps.append(_loss(checkpoint, length or LOSS_LENGTH))
    return VerificationPlan(folder.name, None if against is None else str(against), tuple(steps))


def _of_new(checkpoint: Checkpoint, *, files_only: bool) -> list[Step]:
    """The steps for a model that has no source."""
    steps = [Step("read every byte of the files", checkpoint.total_bytes / _COMPARED)]
    if files_only:
        return steps
    size, pace = model_size(checkpoint), measure_pace()
    load = size.stored / _LOADED
    round_of_presentations = size.seconds(pace, TOKENS, TOKENS, 11) + size.seconds(pace, 1, 1, 17)
    return [
        *steps,
        Step("import torch and transformers, load the model", _IMPORT + load),
        Step("load it in a fresh process", _IMPORT + load + size.seconds(pace, TOKENS, TOKENS)),
        Step(f"present {TOKENS} tokens in nine ways", round_of_presentations),
    ]


def _running(
    checkpoint: Checkpoint, plan: dict[str, Any], repetitions: Repetitions, *, compares: bool, layers: int | None
) -> list[Step]:
    anatomy = read_anatomy(checkpoint)
    size, pace = _of_layers(model_size(checkpoint), layers, len(anatomy.layers)), measure_pace()
    load = size.stored / _LOADED

    def passes(tokens: int, count: float = 1.0) -> float:
        return count * size.seconds(pace, tokens, tokens)

    length = min(repetitions.length, anatomy.positions)
    shown = repetitions.presented
    # Nine presentations and the plain row, then the single tokens after two caches and a padded prompt.
    round_of_n = passes(shown, 11) + passes(1, 17)
    rounds = 3 if repetitions.measures_source else 2  # one of n itself, one of the logits
    fresh = _IMPORT + load + passes(FRESH_TOKENS) + passes(8) + passes(1, 3)
    operated = {layer for one in plan["operations"] for layer in one["layers"] if layers is None or layer < layers}
    steps = [Step("import torch and transformers, load the model", _IMPORT + load)]
    if compares:
        steps.append(Step(f"compare {length} tokens with the source", load + passes(length, 3)))
    return [
        *steps,
        Step("load it in a fresh process", fresh),
        Step(f"present {shown} tokens in nine ways, {rounds} times", rounds * round_of_n),
        Step("three inputs from other programs", passes(FOREIGN_TOKENS, 10)),
        Step(
            f"change each of {len(operated)} layers", passes(ABLATION_TOKENS, len(operated) if plan["tensors"] else 0)
        ),
    ]


def _loss(checkpoint: Checkpoint, length: int) -> Step:
    size = model_size(checkpoint)
    each = size.stored / _LOADED + size.seconds(measure_pace(), length, length, LOSS_SEQUENCES)
    return Step("compare the loss", 2 * each)


def _of_layers(size: ModelSize, layers: int | None, of: int) -> ModelSize:
    """The size of the first layers; embeddings and head are counted with their share, which is too little."""
    share = 1.0 if layers is None else min(1.0, layers / of)
    return ModelSize(*(round(share * value) for value in (size.parameters, size.width, size.stored)))
