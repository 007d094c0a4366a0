"""The steps of a trial. A finished step is kept."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from surgery.checkpoint import load_json
from surgery.conversion import convert
from surgery.conversion.execution import PlaceMode
from surgery.errors import NoChoiceError
from surgery.loading.pace import model_size
from surgery.operations import OPERATIONS
from surgery.trial.folder import RESULT, TrialFolder
from surgery.trial.measuring import TrialComparison, measure
from surgery.trial.plan import Slowness, TrialPlan, TrialStep, facts_in, make_plan
from surgery.trial.preparation import Preparation, Tried
from surgery.trial.recommendation import TrialEvidence, best_of, find
from surgery.trial.result import TrialResult
from surgery.trial.texts import divide_texts, write_texts

OnPlan = Callable[[TrialPlan], None]
OnStep = Callable[[int, int, TrialStep], None]
OnProgress = Callable[[int, int, str], None]

SOURCE = "source"
_NOT_MEASURED = (
    "longer texts, other kinds of text, other tasks than finding facts and predicting text",
    "time: nothing here says that a model becomes faster",
    "a training run (surgery finetune), which may gain more",
)


class TrialRun:
    """One trial.

    Args:
        model: as the user gave it, for commands.
        revision: as the user gave it.
        prepared: model, candidates and texts.
        folder: of the trial.
        on_step, on_progress: see :func:`surgery.trial.try_model`.
    """

    def __init__(
        self,
        model: str,
        revision: str | None,
        prepared: Preparation,
        folder: TrialFolder,
        on_step: OnStep | None,
        on_progress: OnProgress | None,
    ) -> None:
        self.model, self.revision, self.prepared, self.folder = model, revision, prepared, folder
        self.run = prepared.run
        self.on_step, self.on_progress = on_step, on_progress
        self.seconds: dict[str, float] = {}

    def result(self, minutes: float, on_plan: OnPlan | None) -> TrialResult:
        """Plan, calibrate, measure and recommend; or go on where an earlier run stopped.

        Args:
            minutes: that the trial may take.
            on_plan: called with the plan.
        """
        plan = self.folder.plan(self.prepared.request, minutes)
        if plan is None:
            plan = make_plan(self.prepared, minutes, self._slowness())
            self.folder.write_plan(plan)
        if on_plan is not None:
            on_plan(plan)
        division = divide_texts(self.prepared.texts, plan.length)
        calibrate_on, measure_on = write_texts(division, self.folder.texts)
        calibrations: dict[str, Any] = {}
        failed: dict[str, str] = {}
        for number, step in enumerate(plan.steps, 1):
            if self.on_step is not None:
                self.on_step(number, len(plan.steps), step)
            began = time.perf_counter()
            tried = next((one for one in self.prepared.tried if one.name == step.name), None)
            if tried is not None:
                found, reason = self._calibrated(tried, plan, calibrate_on)
                calibrations |= {} if found is None else {tried.name: found}
                failed |= {} if reason is None else {tried.name: reason}
                self._took(step.name, time.perf_counter() - began)
        began = time.perf_counter()  # the last step
        measured = self._measured(plan, calibrations, failed, measure_on)
        self._took(plan.steps[-1].name, time.perf_counter() - began)
        return self._conclude(plan, calibrations, *measured)

    def _slowness(self) -> Slowness:
        """Of the model on this machine, timed."""
        from surgery.loading import load_model
        from surgery.trial.timing import time_model

        if self.on_progress is not None:
            self.on_progress(0, 1, "timing the model")
        model: Any = load_model(self.prepared.source.folder, self.run)
        return time_model(model, model_size(self.prepared.checkpoint, self.run), max(self.prepared.lengths))

    def _took(self, name: str, seconds: float) -> None:
        """Add the time of a step to that of earlier runs."""
        path = self.folder.path / "seconds.json"
        known = load_json(path) if path.is_file() else {}
        self.seconds = {**known, name: round(known.get(name, 0.0) + seconds, 1)}
        self.folder.write(path.name, self.seconds)

    def _calibrated(self, tried: Tried, plan: TrialPlan, texts: Path) -> tuple[Any, str | None]:
        """The calibration of a candidate, or the reason why there is none."""
        operation = OPERATIONS[tried.operation]
        package = operation.calibration_package()
        path = self.folder.calibration(tried.name)
        if path.is_file():
            return package.read_calibration(path), None
        if self.folder.failure(tried.name).is_file():
            return None, str(load_json(self.folder.failure(tried.name))["reason"])
        shared = {"work": self.folder.work} if operation.calibration_keeps_work() else {}
        options = {name: value for name, value in tried.candidate.options.items() if name != "name"}
        try:
            found = package.calibrate(
                self.prepared.source.folder,
                [texts],
                options=options,
                settings=operation.trial_settings(plan.length, plan.effort.share),
                run=self.run,
                on_progress=self.on_progress,
                **shared,
            )
        except NoChoiceError as error:
            self.folder.write(self.folder.failure(tried.name).name, {"reason": error.message})
            return None, error.message
        self.folder.write(path.name, found.to_dict())
        return found, None

    def _measured(
        self, plan: TrialPlan, calibrations: Mapping[str, Any], failed: Mapping[str, str], texts: Path
    ) -> tuple[list[TrialComparison], dict[str, int], TrialEvidence]:
        """Every comparison with the source and with controls, and the cache."""
        models = {SOURCE: self.prepared.source.folder}
        kept: dict[str, float] = {SOURCE: 1.0}
        for tried in self.prepared.tried:
            origin = tried.candidate.derived_from or tried.name
            if origin in calibrations:
                models[tried.name] = self._converted(tried, plan, calibrations[origin])
                operation = OPERATIONS[tried.operation]
                kept[tried.name] = operation.kept_cache(calibrations[origin], self.prepared.anatomy, plan.length)
        comparisons: list[TrialComparison] = []
        if len(models) > 1:
            given = (plan, texts, self.folder.measurements, self.run)
            comparisons += measure(models, SOURCE, *given, self.on_progress)
            for tried in self.prepared.tried:
                control = tried.candidate.control
                if control in models and tried.name in models:
                    pair = {tried.name: models[tried.name], control: models[control]}
                    comparisons += measure(pair, control, *given, self.on_progress)
        at = [one for one in comparisons if one.tokens == plan.length]
        evidence = TrialEvidence(
            plan.length,
            {one.model: one for one in at if one.other == SOURCE},
            {one.model: one for one in at if one.other != SOURCE},
            failed,
            self._allowed(plan),
            kept,
        )
        whole = self._cache_bytes(plan.length)
        return comparisons, {name: round(share * whole) for name, share in kept.items()}, evidence

    def _allowed(self, plan: TrialPlan) -> dict[str, float]:
        """By how much the loss may rise, by candidate."""
        found = {}
        for tried in self.prepared.tried:
            settings: Any = OPERATIONS[tried.operation].trial_settings(plan.length, plan.effort.share)
            found[tried.name] = float(settings.max_loss_increase)
        return found

    def _converted(self, tried: Tried, plan: TrialPlan, calibration: Any) -> Path:
        """A converted checkpoint, for the time of the trial."""
        output = self.folder.models / tried.name
        if output.is_dir():
            return output
        self.folder.models.mkdir(parents=True, exist_ok=True)
        source = self.prepared.source.folder
        shard = source / self.prepared.checkpoint.shards[0]
        # Hard links need no space, where the file system can have them.
        mode: PlaceMode = "link" if shard.stat().st_dev == self.folder.models.stat().st_dev else "auto"
        if tried.candidate.derived_from is None:
            options, values = tried.candidate.options, calibration
        else:
            operation = OPERATIONS[tried.operation]
            options, values = operation.derived_options(calibration, self.prepared.anatomy, plan.length), None
        return convert(source, [dict(options)], calibration=values, output=output, mode=mode).output

    def _cache_bytes(self, tokens: int) -> int:
        """Keys and values of one sequence in the source's cache."""
        size = {"float32": 4}.get(self._dtype(), 2)
        found = 0
        for layer in self.prepared.anatomy.layers:
            if layer.kind in ("full", "sliding", "chunked"):
                seen = tokens if layer.window is None else min(tokens, layer.window)
                found += 2 * size * seen * layer.kv_heads * layer.head_dim
        return found

    def _dtype(self) -> str:
        """Of the keys and values: the one that was asked for, or that of most tensors."""
        if self.run.dtype != "auto":
            return self.run.dtype
        kinds = [tensor.dtype for tensor in self.prepared.checkpoint.tensors.values()]
        return "float32" if max(set(kinds), key=kinds.count) == "F32" else "bfloat16"

    def _conclude(
        self,
        plan: TrialPlan,
        calibrations: Mapping[str, Any],
        comparisons: Sequence[TrialComparison],
        cache: dict[str, int],
        evidence: TrialEvidence,
    ) -> TrialResult:
        """The recommendation; converted models are removed, and the result is kept."""
        findings = find(self.prepared.tried, evidence)
        recommended = best_of(self.prepared.tried, findings)
        samples = plan.effort.samples
        result = TrialResult(
            plan,
            self.folder.path,
            tuple(comparisons),
            cache,
            tuple(findings),
            recommended,
            (
                f"{samples} haystacks with {facts_in(plan.length)} facts each and up to {samples} passages of "
                f"{' and '.join(f'{length:,}' for length in plan.lengths)} tokens",
                f"{plan.measured_on}, but of the same kind as those of the calibrations",
                "paired differences, whose intervals of 95% resample whole texts and haystacks",
            ),
            (*_NOT_MEASURED, *plan.left_out),
            self._commands(recommended, calibrations),
            self.seconds,
        )
        self.folder.write(RESULT, result.to_dict())
        self.folder.remove_models()
        return result

    def _commands(self, recommended: Sequence[str], calibrations: Mapping[str, Any]) -> tuple[str, ...]:
        """The complete commands to go on with."""
        from surgery.recovery.constant_merge import takes_factors

        found: list[str] = []
        name = Path(self.model).name or "model"
        source = ["--revision", self.revision] if self.revision else []
        for tried in self.prepared.tried:
            if tried.name not in recommended:
                continue
            output, record = f"{name}-{tried.name}", self.folder.calibration(tried.name).as_posix()
            words = ["convert", "--to", tried.operation, self.model, *source, "--calibration", record, "-o", output]
            found.append(shlex.join(["surgery", *words]))
            texts = (self.folder.texts / "measure").as_posix()
            found.append(shlex.join(["surgery", "evaluate", output, "--against", self.model, "--text", texts]))
            operation = OPERATIONS[tried.operation]
            resolved = operation.calibrated({"name": tried.operation}, calibrations[tried.name])
            factors = operation.head_factors(resolved)
            if factors is not None and takes_factors(self.prepared.anatomy, factors):
                found.append(shlex.join(["surgery", "merge", output, "-o", f"{name}-plain"]))
        return tuple(found)
