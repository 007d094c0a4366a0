"""What a trial needs to know before it plans: the model, what can be tried on it, and its texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from surgery.anatomy import Anatomy, read_anatomy
from surgery.checkpoint import Checkpoint, Source, open_checkpoint, resolve, sha256_json
from surgery.conversion.source_search import find_source
from surgery.data import Document, read_documents
from surgery.errors import PlanRefusedError, UsageError
from surgery.loading import RunOptions, load_tokenizer
from surgery.loading.precision import settled
from surgery.operations import OPERATIONS
from surgery.operations.tried import TrialCandidate
from surgery.trial.texts import TrialText, count_tokens, missing_text

# Lengths that are tried where none is given, the longest first that fits into texts, positions and time.
LENGTHS = (4096, 2048, 1024, 512)
SHORTEST = 256


@dataclass(frozen=True)
class Tried:
    """A candidate, and the name of its operation."""

    operation: str
    number: int
    candidate: TrialCandidate

    @property
    def name(self) -> str:
        """Of the candidate."""
        return self.candidate.name


@dataclass(frozen=True)
class Preparation:
    """The model of a trial, what is tried on it, and the texts.

    Attributes:
        source, checkpoint, anatomy: the model.
        tried: the candidates, in order.
        refused: what cannot be tried, by operation, with the reason.
        texts: with their numbers of tokens.
        left_out: sentences on texts that are left out.
        lengths: that the texts and the positions allow, the longest first.
        run: device, dtype and attention backend, with the dtype that is right here.
        request: SHA-256 of all that the trial depends on, but its time.
    """

    source: Source
    checkpoint: Checkpoint
    anatomy: Anatomy
    tried: tuple[Tried, ...]
    refused: dict[str, str]
    texts: tuple[TrialText, ...]
    left_out: tuple[str, ...]
    lengths: tuple[int, ...]
    run: RunOptions
    request: str


def prepare(
    model: str | Path, text: Sequence[str | Path], length: int | None, revision: str | None, run: RunOptions
) -> Preparation:
    """Read headers and texts; no model is loaded.

    Raises:
        UsageError: no text or too little, or a length that the model or the texts do not have.
        CheckpointError: the model cannot be read, or its family is not supported.
        PlanRefusedError: the model is converted already, or nothing can be tried on it.
    """
    if not text:
        raise UsageError("no text was given to try the model on", hint="Give several kinds: --text 'texts/*.txt'.")
    source = resolve(model, revision)
    checkpoint = open_checkpoint(source)
    anatomy = read_anatomy(checkpoint)
    if anatomy.operations:
        raise PlanRefusedError(
            f"{source.name} is converted already; a trial begins with a source",
            hint="Try the source of this checkpoint. To measure this one: "
            f"surgery evaluate {model} --against {find_source(source.folder) or 'SOURCE'}.",
        )
    tried, refused = _candidates(anatomy)
    _check_length(length, anatomy, str(model))
    documents = read_documents(text)
    allowed = (length,) if length is not None else tuple(one for one in LENGTHS if one <= anatomy.trained_length)
    if not allowed:
        raise UsageError(f"the model was trained at {anatomy.trained_length} tokens; a trial needs {LENGTHS[-1]}")
    run = settled(run, [source.folder])
    tokenizer = load_tokenizer(source.folder, trust_remote_code=run.trust_remote_code)
    texts, left_out = count_tokens(documents, tokenizer, max(allowed))
    fitting = tuple(one for one in allowed if missing_text(texts, one) is None)
    if not fitting:
        raise UsageError(missing_text(texts, min(allowed)) or "", hint=_hint(texts, min(allowed)))
    return Preparation(
        source,
        checkpoint,
        anatomy,
        tried,
        refused,
        tuple(texts),
        tuple(left_out),
        fitting,
        run,
        _request(source, documents, length, run),
    )


def _candidates(anatomy: Anatomy) -> tuple[tuple[Tried, ...], dict[str, str]]:
    """What can be tried on the model, and the reasons why others cannot.

    Raises:
        PlanRefusedError: nothing can be tried.
    """
    found: list[Tried] = []
    refused: dict[str, str] = {}
    for name, operation in OPERATIONS.items():
        candidates = operation.trial_candidates()
        if not candidates:
            continue
        try:
            operation.check_family(anatomy.family)
            first = operation.uncalibrated(candidates[0].options)
            operation.choose_layers(operation.options.model_validate(first), anatomy)
        except PlanRefusedError as error:
            refused[name] = error.message
            continue
        found += [Tried(name, number, candidate) for number, candidate in enumerate(candidates)]
    if not found:
        raise PlanRefusedError("; ".join(refused.values()))
    return tuple(found), refused


def _check_length(length: int | None, anatomy: Anatomy, model: str) -> None:
    if length is None:
        return
    if length < SHORTEST:
        raise UsageError(
            f"--length {length}: a trial needs at least {SHORTEST} tokens", hint=f"Pass --length {SHORTEST} or more."
        )
    if length > anatomy.trained_length:
        words = [
            option
            for operation in OPERATIONS.values()
            if (option := operation.option_for_length(_factor(length, anatomy.trained_length)))
        ]
        raise UsageError(
            f"--length {length}: the model was trained at {anatomy.trained_length} tokens",
            hint=f"Pass --length {anatomy.trained_length}. For longer texts: surgery convert {words[0]} {model}, then "
            "surgery evaluate it against the source.",
        )


def _factor(length: int, trained: int) -> float:
    """The least power of two by which the trained length must grow."""
    return float(2 ** ((length - 1) // trained).bit_length())


def _hint(texts: Sequence[TrialText], length: int) -> str:
    shorter = [one for one in LENGTHS if one < length and missing_text(texts, one) is None]
    return "Give longer texts, or more of them" + (f", or pass --length {shorter[0]}." if shorter else ".")


def _request(source: Source, documents: Sequence[Document], length: int | None, run: RunOptions) -> str:
    weights = {path.name: path.stat().st_size for path in sorted(source.folder.glob("*.safetensors"))}
    texts = sorted(sha256_json(document.text) for document in documents)
    return sha256_json([source.name, source.commit, weights, texts, length, run.model_dump(mode="json")])
