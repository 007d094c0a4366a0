"""Make a model from random weights: plan, build, write. A kill leaves no output or a whole one."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from surgery.checkpoint import StagedFolder, check_output, require_space, write_json
from surgery.checkpoint.record import NEW_NAME
from surgery.errors import CheckpointError, UsageError
from surgery.loading.model import no_bar
from surgery.models.base import Architecture, ArchitectureOptions
from surgery.models.card import write_new_card
from surgery.models.catalogue import ARCHITECTURES
from surgery.models.vocabulary import VocabularySource
from surgery.result_table import ShownAsRecord
from surgery.version import __version__

if TYPE_CHECKING:
    from surgery.models.base import Vocabulary

_BASE = "softmax"  # the model without its operations; plans and cards name it
_BYTES = 4
_OTHER_FILES = 20_000_000  # bytes: a tokenizer, the card, the code


@dataclass(frozen=True)
class NewPlan(ShownAsRecord):
    """The plan of a new model.

    Attributes:
        architecture: its name.
        options: of the architecture, all of them.
        sizes: the options in words, by label.
        vocabulary: where the tokenizer comes from, in words.
        vocabulary_size: number of tokens; the largest number if a tokenizer is trained.
        parameters: number of parameters with that vocabulary.
    """

    architecture: str
    options: Mapping[str, Any]
    sizes: Mapping[str, str]
    vocabulary: str
    vocabulary_size: int
    parameters: int

    @property
    def title(self) -> str:
        """For its table."""
        return f"new {self.architecture}"

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


@dataclass(frozen=True)
class NewModel(ShownAsRecord):
    """A model that was made: the plan with the real sizes, and the output folder."""

    plan: NewPlan
    output: Path

    @property
    def title(self) -> str:
        """For its table."""
        return f"new {self.plan.architecture} in {self.output}"

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {"output": str(self.output), **self.plan.to_dict()}


def plan_new(
    architecture: str,
    options: Mapping[str, Any] | None = None,
    *,
    tokenizer: str | Path | None = None,
    vocab_size: int | None = None,
    train_tokenizer: Sequence[str] = (),
) -> NewPlan:
    """The plan of a new model. Nothing is written, and torch is not imported.

    Args:
        architecture: a name of ``ARCHITECTURES``.
        options: of the architecture.
        tokenizer: a model folder whose tokenizer is copied.
        vocab_size: number of tokens; of a tokenizer that is trained the largest number.
        train_tokenizer: text files, folders and globs to train a tokenizer on.

    Raises:
        UsageError: the architecture or an option is unknown or wrong, or there is no vocabulary.
        CheckpointError: the folder of the tokenizer does not exist.
    """
    chosen = _architecture(architecture)
    source = _vocabulary_source(tokenizer, vocab_size, train_tokenizer)
    return _plan(chosen, _options(chosen, options or {}), source, source.planned().size)


def new(
    architecture: str,
    output: str | Path,
    *,
    tokenizer: str | Path | None = None,
    vocab_size: int | None = None,
    train_tokenizer: Sequence[str] = (),
    force: bool = False,
    **options: Any,
) -> NewModel:
    """Make a model from random weights; see :func:`plan_new` for the arguments.

    The same arguments give the same weights.

    Args:
        output: the new folder.
        force: replace an earlier output of this tool.

    Raises:
        UsageError: as :func:`plan_new`; also an output that exists, and texts that cannot be read.
        CheckpointError: too little disk space, or the disk does not take it.
    """
    chosen = _architecture(architecture)
    valid = _options(chosen, options)
    source = _vocabulary_source(tokenizer, vocab_size, train_tokenizer)
    target = check_output(Path(output), force=force, source=source.folder)
    planned = _plan(chosen, valid, source, source.planned().size)
    with StagedFolder(target, force=force, source=source.folder) as staged:
        try:
            require_space(staged.path, _BYTES * planned.parameters + _OTHER_FILES)
            made = _write(chosen, valid, source, staged.path)
        except OSError as error:
            raise CheckpointError(f"{target.name} cannot be written: {error.strerror or error}") from error
        staged.commit()
    return NewModel(made, target)


def _write(chosen: Architecture, options: ArchitectureOptions, source: VocabularySource, staged: Path) -> NewPlan:
    """Write the whole model into the staged folder; returns the plan with the size of the trained vocabulary."""
    operations = chosen.operations(options)
    folder = staged / _BASE if operations else staged
    folder.mkdir(exist_ok=True)
    vocabulary = source.write(folder, options.length)
    plan = _plan(chosen, options, source, vocabulary.size)
    _save(chosen, options, vocabulary, folder)
    write_new_card(folder / "README.md", plan, has_tokenizer=source.folder is not None or bool(source.texts))
    (folder / NEW_NAME).parent.mkdir()
    write_json(folder / NEW_NAME, {"schema": 1, "version": __version__, **plan.to_dict()})
    if operations:
        from surgery.conversion import execute
        from surgery.conversion import make_plan as plan_conversion

        # The folder of the model without the operation is deleted below, so its files can be linked.
        execute(plan_conversion(folder, operations), staged / "converted", mode="link")
        shutil.rmtree(folder)
        for path in sorted((staged / "converted").iterdir()):
            path.rename(staged / path.name)
        (staged / "converted").rmdir()
    return plan


def _save(chosen: Architecture, options: ArchitectureOptions, vocabulary: Vocabulary, folder: Path) -> None:
    import torch

    # Drawn apart from the random numbers of the caller, who gets them back as they were.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        model = chosen.build(options, vocabulary)
    with no_bar():
        model.save_pretrained(folder)  # with the code of an own model class


def _plan(chosen: Architecture, options: ArchitectureOptions, source: VocabularySource, size: int) -> NewPlan:
    return NewPlan(
        architecture=chosen.name,
        options=options.model_dump(mode="json"),
        sizes=dict(chosen.sizes(options)),
        vocabulary=source.described(),
        vocabulary_size=size,
        parameters=chosen.count_parameters(options, size),
    )


def _architecture(name: str) -> Architecture:
    if name not in ARCHITECTURES:
        raise UsageError(f"unknown architecture {name!r}", hint=f"Known: {', '.join(ARCHITECTURES)}.")
    return ARCHITECTURES[name]


def _options(chosen: Architecture, given: Mapping[str, Any]) -> ArchitectureOptions:
    """The options, validated; also those of operations.

    Raises:
        UsageError: an option is unknown or wrong, or options do not fit together.
    """
    from pydantic import ValidationError

    from surgery.conversion.options import option_errors

    try:
        valid = chosen.options.model_validate(dict(given))
    except ValidationError as error:
        raise UsageError(f"{chosen.name}: {option_errors(error)}") from error
    chosen.operations(valid)
    chosen.count_parameters(valid, 1)
    return valid


def _vocabulary_source(
    tokenizer: str | Path | None, vocab_size: int | None, train_tokenizer: Sequence[str]
) -> VocabularySource:
    folder = None if tokenizer is None else Path(tokenizer).expanduser()
    source = VocabularySource(vocab_size, folder, tuple(train_tokenizer))
    source.check()
    return source
