"""``evaluate``: checks the arguments and runs one session."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from surgery.checkpoint import Source, open_checkpoint, resolve
from surgery.data import Document
from surgery.errors import UsageError
from surgery.evaluation.folders import check_store
from surgery.evaluation.results import EvaluationResult
from surgery.evaluation.session import OnEvent, Session
from surgery.evaluation.suite import DEFAULT, Suite, read_suite
from surgery.evaluation.workload import EvaluationPlan
from surgery.loading import RunOptions


def evaluate(
    model: str | Path | Sequence[str | Path],
    *,
    against: str | Path | None = None,
    text: str | Path | Sequence[str | Path] = (),
    suite: str | Path | Suite | dict[str, Any] = DEFAULT,
    length: int | None = None,
    documents: int | None = None,
    revision: str | None = None,
    results: str | Path | None = None,
    run: RunOptions | None = None,
    on_event: OnEvent | None = None,
) -> EvaluationResult:
    """Measure the parts of a suite, and the paired differences to a base.

    All models see the same tokens. Finished parts in the results folder are not measured again, and an interrupted run
    resumes after the last finished sequence or prompt.

    Args:
        model: one or more folders or hub ids; converted or not.
        against: the base to compare with, a folder or hub id.
        text: files, folders and globs of UTF-8 text. Documents are never joined.
        suite: a suite that ships, a YAML file, or a suite in Python.
        length: tokens per sequence, in place of the suite's, in every part that reads texts.
        documents: largest number of sequences, from as many texts as possible, in place of the suite's.
        revision: branch, tag or commit of a hub model.
        results: folder for finished parts; None stores nothing.
        run: device, dtype, batch size and attention backend; the same for all models.
        on_event: called with every event; see :data:`OnEvent`.

    Raises:
        UsageError: no text, texts too short, a wrong suite, models whose tokenizers cut the texts differently, or
            a results folder that holds other files.
        CheckpointError: a model or tokenizer cannot be loaded, or the model is not causal.
        SurgeryError: a loss is not finite, or memory runs out.
    """
    given = _Given.checked(model, against, text, suite, length, documents, revision, results)
    with given.session(results, run, on_event) as session:
        return session.evaluate(given.sources, given.base)


def plan_evaluation(
    model: str | Path | Sequence[str | Path],
    *,
    against: str | Path | None = None,
    text: str | Path | Sequence[str | Path] = (),
    suite: str | Path | Suite | dict[str, Any] = DEFAULT,
    length: int | None = None,
    documents: int | None = None,
    revision: str | None = None,
    results: str | Path | None = None,
    run: RunOptions | None = None,
    on_event: OnEvent | None = None,
) -> EvaluationPlan:
    """What ``evaluate`` would measure with the same arguments, and about how long it takes; no model is loaded.

    Raises:
        UsageError, CheckpointError: as ``evaluate``.
    """
    given = _Given.checked(model, against, text, suite, length, documents, revision, results)
    with given.session(results, run, on_event) as session:
        return session.plan(given.sources, given.base)


@dataclass(frozen=True)
class _Given:
    """Checked arguments."""

    suite: Suite
    texts: list[Document]
    sources: list[Source]
    base: Source | None

    @staticmethod
    def checked(
        model: str | Path | Sequence[str | Path],
        against: str | Path | None,
        text: str | Path | Sequence[str | Path],
        suite: str | Path | Suite | dict[str, Any],
        length: int | None,
        documents: int | None,
        revision: str | None,
        results: str | Path | None,
    ) -> _Given:
        for option, value, least in (("length", length, 2), ("documents", documents, 1)):
            if value is not None and value < least:
                raise UsageError(f"--{option} {value}: must be at least {least}")
        if results is not None:
            check_store(Path(results))
        chosen = read_suite(suite).changed(length=length, documents=documents)
        names = [model] if isinstance(model, str | Path) else list(model)
        if not names:
            raise UsageError("no model is given")
        texts = chosen.documents([text] if isinstance(text, str | Path) else list(text))
        sources = [resolve(name, revision) for name in names]
        base = resolve(against) if against is not None else None
        for source in (*sources, *([base] if base is not None else [])):
            open_checkpoint(source)  # a model that cannot be loaded fails before anything runs
        return _Given(chosen, texts, sources, base)

    @contextmanager
    def session(
        self, results: str | Path | None, run: RunOptions | None, on_event: OnEvent | None
    ) -> Iterator[Session]:
        """A session that keeps finished parts in ``results``, or nowhere."""
        with ExitStack() as stack:
            folder = Path(results) if results is not None else Path(stack.enter_context(tempfile.TemporaryDirectory()))
            yield Session(self.suite, run or RunOptions(), self.texts, folder, on_event or (lambda event: None))
