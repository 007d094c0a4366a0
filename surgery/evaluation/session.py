"""A session: every part of a suite on every model, one model in memory at a time."""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from surgery.anatomy.anatomy import family_of
from surgery.checkpoint import Source, load_config
from surgery.data import Document
from surgery.errors import CheckpointError, PlanRefusedError, UsageError
from surgery.evaluation.assembly import assemble
from surgery.evaluation.causality import check_causal
from surgery.evaluation.fingerprints import fingerprint_bytes, model_fingerprint
from surgery.evaluation.history import training_history
from surgery.evaluation.measure import Measure, NotMeasurableError, PairedMeasure, PartPlan, Subject, Unit
from surgery.evaluation.measures import MEASURES
from surgery.evaluation.models import describe
from surgery.evaluation.part import PartOptions
from surgery.evaluation.results import EvaluationResult
from surgery.evaluation.store import PartFile
from surgery.evaluation.suite import Suite
from surgery.evaluation.workload import (
    EvaluationPlan,
    PartWork,
    WatchedDocuments,
    beyond_positions,
    paired_work,
    part_work,
    size_of,
)
from surgery.loading import RunOptions, environment, load_model, load_tokenizer, pick_device
from surgery.loading.precision import settled

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Called with an event, a dictionary: ``event`` is fingerprint, tokenizing, plan, loading, tokens, unit, part, or done.
OnEvent = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class ModelPlans:
    """A model with its plans for the parts that measure one model alone."""

    source: Source
    fingerprint: str
    tokenizer: PreTrainedTokenizerBase
    plans: tuple[PartPlan, ...]


class Session:
    """One evaluation: plans for every model, then every part, then one result."""

    def __init__(self, suite: Suite, run: RunOptions, texts: list[Document], folder: Path, on_event: OnEvent) -> None:
        self.suite, self.run, self.texts, self.folder, self.on_event = suite, run, texts, folder, on_event
        self.parts: list[PartOptions] = []
        self.measures: list[Measure] = []
        # A model and its base in the same turns, in place of one model alone.
        self.paired: list[tuple[PartOptions, PairedMeasure]] = []
        for part in suite.parts:
            measure = MEASURES[part.kind].measure(part)
            if isinstance(measure, PairedMeasure):
                self.paired.append((part, measure))
            else:
                self.parts.append(part)
                self.measures.append(measure)
        self.device = pick_device(run.device)
        self.total, self.done = 0, 0
        self.left_out: list[str] = []  # parts that do not apply to a model, in words

    def plan(self, sources: list[Source], base: Source | None) -> EvaluationPlan:
        """What is left to measure, and about how long it takes; no model is loaded."""
        entries = self._entries(sources, base)
        return self._work(entries, entries[-1] if base is not None else None)

    def evaluate(self, sources: list[Source], base: Source | None) -> EvaluationResult:
        """Every part of every model, then one result."""
        entries = self._entries(sources, base)
        distinct = _distinct(entries)
        work = self._work(entries, entries[-1] if base is not None else None)
        paired = {part.kind for part, _ in self.paired}  # these count no tokens while they run
        self.total = sum(part.tokens for part in work.parts if part.kind not in paired)
        expected = {"seconds": round(work.seconds, 1), "estimate": work.estimate, "notes": list(work.notes)}
        parts = len(self.measures) * len(distinct)
        self.on_event({"event": "plan", "parts": parts, "total": self.total, **expected})
        measured = {entry.fingerprint: self._model(entry) for entry in distinct}
        found = [measured[entry.fingerprint].get(number) for number in range(len(self.measures)) for entry in distinct]
        by_part = [part for part in found if part is not None]
        reference = entries[-1] if base is not None else None
        for part, measure in self.paired:
            alone = distinct == [reference]
            by_part += [self._pair(part, measure, own, reference) for own in distinct if own is not reference or alone]
        self.on_event({"event": "done", "total": self.total})
        trainings = {entry.fingerprint: runs for entry in distinct if (runs := training_history(entry.source.folder))}
        against = entries[-1].fingerprint if base is not None else None
        if not by_part and self.left_out:
            raise UsageError(self.left_out[0], hint="Pass a suite with other parts: --suite loss.")
        return assemble(by_part, against=against, trainings=trainings, warnings=self.left_out)

    def _entries(self, sources: list[Source], base: Source | None) -> list[ModelPlans]:
        """Every model with its plans, the base last. All run in one dtype, as far as the options leave it open."""
        models = [*sources, *([base] if base is not None else [])]
        self.run = settled(self.run, [source.folder for source in models])
        entries = [self._plans(source) for source in models]
        self._check_same_tokens(entries)
        return entries

    def _work(self, entries: list[ModelPlans], base: ModelPlans | None) -> EvaluationPlan:
        """What is not measured yet."""
        distinct = _distinct(entries)
        sizes = {entry.fingerprint: size_of(entry.source, self.run) for entry in distinct}
        found: list[PartWork] = []
        for number, (part, measure) in enumerate(zip(self.parts, self.measures, strict=True)):
            for entry in distinct:
                if not self._file(entry, number).path.is_file():
                    units, size = entry.plans[number].units, sizes[entry.fingerprint]
                    found.append(part_work(part, entry.source.name, size, units, measure.cost))
        for part, pair in self.paired:
            for entry in distinct:
                if entry is base and distinct != [base]:
                    continue
                other = base if base is not entry else None
                data = other.fingerprint if other is not None else ""
                if not self._part_file(entry, part, pair.version, data).path.is_file():
                    both = [sizes[one.fingerprint] for one in (entry, other) if one is not None]
                    found.append(paired_work(part, entry.source.name, pair, both))
        notes = [
            beyond_positions(
                entry.source,
                self.suite,
                ((part, plan.units) for part, plan in zip(self.parts, entry.plans, strict=True)),
            )
            for entry in distinct
        ]
        return EvaluationPlan(
            suite=self.suite.name,
            models=tuple(entry.source.name for entry in (entries[:-1] if base is not None else entries)),
            against=base.source.name if base is not None else None,
            parts=tuple(found),
            notes=tuple(dict.fromkeys(note for note in notes if note is not None)),
        )

    def _plans(self, source: Source) -> ModelPlans:
        total, done = fingerprint_bytes(source), 0

        def on_bytes(count: int) -> None:
            nonlocal done
            done += count
            self.on_event({"event": "fingerprint", "model": source.name, "done": done, "total": total})

        fingerprint = model_fingerprint(source, on_bytes)
        tokenizer = load_tokenizer(source.folder, trust_remote_code=self.run.trust_remote_code)
        vocabulary = _vocabulary(source)

        def on_document(done: int, of: int) -> None:
            self.on_event({"event": "tokenizing", "model": source.name, "documents": done, "of": of})

        watched = WatchedDocuments(self.texts, on_document)
        plans = tuple(measure.plan(tokenizer, vocabulary, watched) for measure in self.measures)
        return ModelPlans(source, fingerprint, tokenizer, plans)

    def _check_same_tokens(self, entries: list[ModelPlans]) -> None:
        """Losses per token can be compared only on the same tokens."""
        first = entries[0]
        for entry in entries[1:]:
            for own, other in zip(first.plans, entry.plans, strict=True):
                if own.data["fingerprint"] != other.data["fingerprint"]:
                    raise UsageError(
                        f"the tokenizers of {first.source.name} and {entry.source.name} split these texts into "
                        "different tokens, so their losses per token cannot be compared",
                        hint="Compare with the source model of the conversion.",
                    )

    def _file(self, entry: ModelPlans, number: int) -> PartFile:
        part, measure = self.parts[number], self.measures[number]
        return self._part_file(entry, part, measure.version, entry.plans[number].data["fingerprint"])

    def _part_file(self, entry: ModelPlans, part: PartOptions, version: int, data: str) -> PartFile:
        return PartFile(
            self.folder,
            {
                "name": entry.source.name,
                "suite": self.suite.name,
                "model": entry.fingerprint,
                "kind": part.kind,
                "version": version,
                "part": part.model_dump(mode="json"),
                "data": data,
                "dtype": self.run.dtype,
                "device": self.device.type,
                "attn_implementation": self.run.attn_implementation,
                "batch_size": self.run.batch_size,
            },
        )

    def _model(self, entry: ModelPlans) -> dict[int, dict[str, Any]]:
        """The parts of one model by number, as far as they apply; the model is loaded only if a part is missing."""
        found: dict[int, dict[str, Any]] = {}
        for number, part in enumerate(self.parts):
            finished = self._finished(self._file(entry, number), entry, part)
            if finished is not None:
                found[number] = finished
        missing = [number for number in range(len(self.measures)) if number not in found]
        if missing:
            subject = self._load(entry)
            for number in missing:
                try:
                    found[number] = self._part(entry, number, subject)
                except NotMeasurableError as error:
                    self.left_out.append(f"{entry.source.name} has no part {self.parts[number].kind}: {error.message}")
            del subject
            _free_memory()
        return found

    def _part(self, entry: ModelPlans, number: int, subject: Subject) -> dict[str, Any]:
        measure, part, plan = self.measures[number], self.parts[number], entry.plans[number]
        file = self._file(entry, number)
        began = time.perf_counter()
        values = file.start()
        self.done += sum(unit.tokens for unit in plan.units if unit.key in values)
        try:
            for batch in _batches([unit for unit in plan.units if unit.key not in values], self.run.batch_size):
                on_tokens = self._counting(entry.source.name, part.kind)
                for unit, found in zip(batch, measure.run(subject, batch, on_tokens), strict=True):
                    file.add(unit.key, found)
                    values[unit.key] = found
                    self.on_event({"event": "unit", "model": entry.source.name, "kind": part.kind, "unit": unit.key})
            units = [values[unit.key] for unit in plan.units]
            return self._finish(file, entry, part, subject, plan.data, units, time.perf_counter() - began)
        finally:
            file.leave()

    def _pair(
        self, part: PartOptions, measure: PairedMeasure, entry: ModelPlans, base: ModelPlans | None
    ) -> dict[str, Any]:
        """One part of a model and its base, both in memory."""
        other = base if base is not entry else None
        data = {"fingerprint": other.fingerprint if other is not None else ""}
        file = self._part_file(entry, part, measure.version, data["fingerprint"])
        finished = self._finished(file, entry, part)
        if finished is not None:
            return finished
        began = time.perf_counter()
        file.start()
        try:
            subject = self._load(entry)
            against = self._load(other) if other is not None else None

            def on_case(case: str) -> None:
                self.on_event({"event": "unit", "model": entry.source.name, "kind": part.kind, "unit": case})

            rows = measure.run(subject.model, against.model if against is not None else None, on_case)
            use = self._use(other, against) if other is not None and against is not None else None
            seconds = time.perf_counter() - began
            finished = self._finish(file, entry, part, subject, data, rows, seconds, base_model=use)
        finally:
            file.leave()
        del subject, against
        _free_memory()
        return finished

    def _use(self, entry: ModelPlans, subject: Subject) -> dict[str, Any]:
        return asdict(describe(subject.model, entry.source, entry.fingerprint, self._longest()))

    def _load(self, entry: ModelPlans) -> Subject:
        self.on_event({"event": "loading", "model": entry.source.name})
        source = entry.source
        subject = Subject(source.name, load_model(source.folder, self.run), entry.tokenizer, source.folder, self.run)
        check_causal(subject.model, source.name)
        return subject

    def _finished(self, file: PartFile, entry: ModelPlans, part: PartOptions) -> dict[str, Any] | None:
        """The finished part, if there is one, under the name that the model has now."""
        finished = file.finished()
        if finished is None:
            return None
        self.on_event({"event": "part", "model": entry.source.name, "kind": part.kind, "seconds": 0.0, "reused": True})
        return {**finished, "model": {**finished["model"], "name": entry.source.name}, **self._margins()}

    def _finish(
        self,
        file: PartFile,
        entry: ModelPlans,
        part: PartOptions,
        subject: Subject,
        data: dict[str, Any],
        units: list[dict[str, Any]],
        seconds: float,
        base_model: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        finished = file.finish(
            {
                "suite": self.suite.name,
                **self._margins(),
                "part": part.model_dump(mode="json"),
                "model": self._use(entry, subject),
                "base_model": base_model,
                "run": self.run.model_dump(mode="json"),
                "data": data,
                "environment": environment(),
                "seconds": seconds,
                "units": units,
            }
        )
        self.on_event(
            {"event": "part", "model": entry.source.name, "kind": part.kind, "seconds": seconds, "reused": False}
        )
        return finished

    def _margins(self) -> dict[str, float]:
        """The margins within which a change counts as kept; they change no measured number."""
        return {"margin": self.suite.margin, "score_margin": self.suite.score_margin}

    def _longest(self) -> int:
        return max(part.longest for part in self.suite.parts)

    def _counting(self, name: str, kind: str) -> Callable[[int], None]:
        def on_tokens(count: int) -> None:
            self.done += count
            self.on_event({"event": "tokens", "model": name, "kind": kind, "done": self.done, "total": self.total})

        return on_tokens


def _distinct(entries: list[ModelPlans]) -> list[ModelPlans]:
    """A model may be given twice, or be its own base: one measurement serves both."""
    return list({entry.fingerprint: entry for entry in reversed(entries)}.values())[::-1]


def _vocabulary(source: Source) -> int:
    """Size of the vocabulary, from config.json or the default of the family."""
    config = load_config(source.folder / "config.json")
    text = config.get("text_config")
    found = config.get("vocab_size", text.get("vocab_size") if isinstance(text, dict) else None)
    if found is None:
        with contextlib.suppress(PlanRefusedError):  # any causal language model can be evaluated
            found = family_of(config).value(config, "vocab_size")
    if not isinstance(found, int):
        raise CheckpointError(f"{source.name}: config.json has no vocab_size, so this is not a language model")
    return found


def _batches(units: Sequence[Unit], size: int) -> list[list[Unit]]:
    """Neighbours of one group together, so that no batch needs padding."""
    batches: list[list[Unit]] = []
    for unit in units:
        last = batches[-1] if batches else []
        if last and len(last) < size and last[0].group == unit.group:
            last.append(unit)
        else:
            batches.append([unit])
    return batches


def _free_memory() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
