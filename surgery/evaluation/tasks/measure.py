"""Short tasks of lm-evaluation-harness, run with its own model class around the loaded model."""

from __future__ import annotations

import hashlib
import numbers
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from surgery.checkpoint import sha256_json
from surgery.data import Document
from surgery.errors import UsageError
from surgery.evaluation.measure import Measure, OnTokens, PartPlan, Subject, Unit
from surgery.evaluation.tasks.options import TasksPart
from surgery.loading import RunOptions

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class TasksMeasure(Measure):
    """Every metric of each task, and its value for each example where it has one."""

    part: TasksPart

    def plan(self, tokenizer: PreTrainedTokenizerBase, vocabulary: int, documents: Sequence[Document]) -> PartPlan:
        """One unit for each task. The number of tokens is not known in advance, so progress counts none."""
        try:
            installed = version("lm_eval")
        except PackageNotFoundError as error:
            raise UsageError(
                "parts of kind `tasks` need lm-evaluation-harness, which is not installed",
                hint="Run: pip install 'model-surgery[eval]'",
            ) from error
        units = tuple(Unit(name, 0, name, name) for name in self.part.names)
        definitions = self._definitions()
        fingerprint = sha256_json({"lm_eval": installed, "definitions": definitions})
        return PartPlan(units, {"fingerprint": fingerprint, "lm_eval": installed})

    def run(self, subject: Subject, units: Sequence[Unit], on_tokens: OnTokens) -> list[dict[str, Any]]:
        """``task``, ``metrics`` by name, ``samples`` (by metric, the value of each example), ``command``."""
        import lm_eval
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager

        part, run = self.part, subject.run
        model, tokenizer = subject.model, subject.tokenizer
        wrapped = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=run.batch_size, device=str(model.device))
        manager = TaskManager(include_path=part.definitions)
        found = []
        for unit in units:
            if unit.payload not in manager.all_tasks:
                raise UsageError(
                    f"lm-eval has no task {unit.payload!r}",
                    hint="`lm-eval ls tasks` lists its tasks. Put your own tasks into a folder and set `definitions`.",
                )
            result = lm_eval.simple_evaluate(
                model=wrapped,
                tasks=[unit.payload],
                num_fewshot=part.shots,
                limit=part.limit,
                task_manager=manager,
                bootstrap_iters=0,
                log_samples=True,
            )
            assert result is not None  # None only on other processes than the first
            metrics, samples = _numbers(result)
            found.append(
                {
                    "task": unit.payload,
                    "metrics": metrics,
                    "samples": samples,
                    "lower_is_better": _lower_is_better(result),
                    "command": lm_eval_command(part, subject.folder, unit.payload, run, str(subject.model.dtype)),
                }
            )
        return found

    def _definitions(self) -> dict[str, str]:
        """Hashes of the user's own task definitions; the numbers depend on them."""
        if self.part.definitions is None:
            return {}
        folder = Path(self.part.definitions)
        if not folder.is_dir():
            raise UsageError(f"definitions: there is no folder {self.part.definitions!r}")
        files = sorted(path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
        return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def lm_eval_command(part: TasksPart, folder: Path, task: str, run: RunOptions, dtype: str) -> str:
    """The plain command of lm-eval that gives the same numbers."""
    arguments = [f"pretrained={folder}", f"dtype={dtype.removeprefix('torch.')}"]
    if (folder / "modeling_surgery.py").is_file() or run.trust_remote_code:
        arguments.append("trust_remote_code=True")
    if run.attn_implementation is not None:
        arguments.append(f"attn_implementation={run.attn_implementation}")
    words = ["lm-eval", "run", "--model", "hf", "--model_args", ",".join(arguments), "--tasks", task]
    words += ["--batch_size", str(run.batch_size)]
    words += ["--device", run.device] if run.device != "auto" else []
    for option, value in (("limit", part.limit), ("num_fewshot", part.shots), ("include_path", part.definitions)):
        words += [f"--{option}", str(value)] if value is not None else []
    return shlex.join(words)


def _numbers(result: Mapping[str, Any]) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """Metrics of every (sub)task as ``task: metric,filter``, and their values for each example if there are any."""
    metrics: dict[str, float] = {}
    samples: dict[str, dict[str, float]] = {}
    for task, own in result["results"].items():
        for name, value in own.items():
            metric, _, chosen = name.partition(",")
            if not chosen or metric.endswith("_stderr") or not isinstance(value, numbers.Real):
                continue
            key = f"{task}: {name}"
            metrics[key] = float(value)
            rows = {
                str(sample["doc_id"]): float(sample[metric])
                for sample in result.get("samples", {}).get(task, ())
                if sample.get("filter", "none") == chosen and isinstance(sample.get(metric), numbers.Real)
            }
            if rows:
                samples[key] = rows
    return metrics, samples


def _lower_is_better(result: Mapping[str, Any]) -> list[str]:
    return sorted(
        f"{task}: {metric}"
        for task, own in result.get("higher_is_better", {}).items()
        for metric, higher in own.items()
        if higher is False
    )
