"""The training folder beside the output: complete checkpoints, the log, and the state of the run.

OUT.training/run.json            settings, fingerprints of data and model
OUT.training/log.jsonl           one row a step
OUT.training/checkpoint-<step>/  written by the trainer; complete once `MARKER` is in it
OUT.training/stage-<k>/          the checkpoints of the later stages
OUT.training/control-<name>/     log and checkpoints of a control; ``writing`` once its output is being written
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from surgery.checkpoint import format_size, load_json
from surgery.checkpoint.locks import FileLock
from surgery.errors import SurgeryError, UsageError
from surgery.training.processes import is_first, process_count
from surgery.training.progress import MARKER, progress_of, write_synced

_RUN = "run.json"
_LOG = "log.jsonl"
_LOSSES = "held-out.npz"
_WRITING = "writing"
_PREFIX = "checkpoint-"
_STAGE = "stage-"
# Keys that may differ when a run is resumed, because they do not change the result.
_FREE = frozenset({"checkpoints", "report_to", "guard"})


class TrainingFolder:
    """The state of one run, in ``<output>.training``, or of one ``part`` of it."""

    def __init__(self, output: Path, part: str | None = None) -> None:
        self.output = output
        whole = output.with_name(output.name + ".training")
        self.path = whole if part is None else whole / part

    def part(self, name: str) -> TrainingFolder:
        """The state of a control."""
        return TrainingFolder(self.output, name)

    def stage_path(self, stage: int) -> Path:
        """Where the checkpoints of a stage are."""
        return self.path if stage == 0 else self.path / f"stage-{stage + 1}"

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep a second run on the same output away; of several processes of one run the first holds the lock.

        Raises:
            CheckpointError: another run holds it.
        """
        if not is_first():
            yield
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.path.with_name(f".{self.path.name}.lock"), self.path.name)
        lock.acquire()
        try:
            yield
        finally:
            lock.release()

    @property
    def log_path(self) -> Path:
        """The log, one JSON row a step."""
        return self.path / _LOG

    def begin(
        self, settings: Mapping[str, Any], identity: Mapping[str, str], *, resume: bool, force: bool
    ) -> Path | None:
        """Make the folder, or find the checkpoint to resume from (None: none yet, so from the start).

        Incomplete checkpoints are removed, and rows of the log beyond the checkpoint: the log of an interrupted and
        resumed run reads like that of an undisturbed one.

        Args:
            settings: the recipe as plain values; it must be the same when the run is resumed.
            identity: fingerprints of the model and of the data.
            resume: find the interrupted run.
            force: remove an earlier run.

        Raises:
            UsageError: there is an earlier run and neither ``resume`` nor ``force``; there is none to resume; or
                recipe, data, model or the number of processes differ from the start of the run.
        """
        run = self.path / _RUN
        if not resume:
            if self.path.exists() and not run.exists() and any(self.path.iterdir()):
                raise UsageError(
                    f"{self.path.name} already exists and was not created by surgery", hint="Move or rename the folder."
                )
            if run.exists() and not force:
                raise UsageError(
                    f"{self.path.name} holds a run that did not finish",
                    hint="Pass --resume to continue it, or --force to start over.",
                )
            shutil.rmtree(self.path, ignore_errors=True)
            self.path.mkdir(parents=True)
            began = {"identity": dict(identity), "processes": process_count(), "recipe": dict(settings)}
            write_synced(run, {"schema": 1, **began})
            return None
        self.check_begun()
        self._compare(load_json(run), settings, identity)
        return self.latest()

    def check_begun(self) -> None:
        """Refuse to resume a run that was never started.

        Raises:
            UsageError: there is no run here.
        """
        if not (self.path / _RUN).exists():
            raise UsageError(f"no interrupted run to resume: {self.path.name} is missing", hint="Leave out --resume.")

    def latest(self) -> Path | None:
        """The checkpoint to resume from, if any; later files are removed."""
        self.path.mkdir(parents=True, exist_ok=True)
        for path in self._checkpoints():
            if not (path / MARKER).is_file():
                shutil.rmtree(path)
        complete = self._checkpoints()
        latest = complete[-1] if complete else None
        self._trim_log(progress_of(latest).step if latest else 0)
        return latest

    def last_complete(self) -> Path | None:
        """The latest checkpoint that has its marker."""
        complete = self._complete()
        return complete[-1] if complete else None

    def rotate(self, keep: int, rising_since: int | None = None) -> None:
        """Delete all complete checkpoints but the latest ``keep``.

        While the loss is rising, the latest from before that stays as well.
        """
        complete = self._complete()
        good = [path for path in complete if rising_since is not None and progress_of(path).step < rising_since]
        for path in complete[:-keep]:
            if path not in good[-1:]:
                _delete(path)

    def delete_from(self, step: int) -> None:
        """Delete the complete checkpoints of a step and of those after it."""
        for path in self._complete():
            if progress_of(path).step >= step:
                _delete(path)

    @property
    def is_writing(self) -> bool:
        """Whether the run began to write the output of this part: what is there is the run's own."""
        return (self.path / _WRITING).exists()

    def begin_writing(self) -> None:
        """Note that the output of this part will be written now."""
        (self.path / _WRITING).touch()

    def rows(self) -> list[dict[str, Any]]:
        """The rows of the log; a last line that a kill cut short is left out."""
        rows = []
        if self.log_path.exists():
            for line in self.log_path.read_text(encoding="utf-8").splitlines():
                try:
                    rows.append(json.loads(line))
                except ValueError:
                    break
        return rows

    def keep_losses(self, losses: Mapping[str, Sequence[Any]]) -> None:
        """Remember held-out losses per token, by name of the model and document."""
        import numpy as np

        self.path.mkdir(parents=True, exist_ok=True)
        arrays = {f"{name}/{number}": part for name, parts in losses.items() for number, part in enumerate(parts)}
        temporary = self.path / "held-out.new.npz"
        np.savez(temporary, **arrays)
        temporary.replace(self.path / _LOSSES)

    def losses(self) -> dict[str, list[Any]]:
        """What `keep_losses` remembered last; nothing where it remembered nothing."""
        import numpy as np

        found: dict[str, list[Any]] = {}
        if (self.path / _LOSSES).is_file():
            with np.load(self.path / _LOSSES, allow_pickle=False) as arrays:
                for key in arrays.files:  # in the order in which they were given
                    found.setdefault(key.partition("/")[0], []).append(arrays[key])
        return found

    def append(self, row: dict[str, Any]) -> None:
        """Add a row to the log.

        Raises:
            SurgeryError: the disk is full; an incomplete last row is skipped when the log is read.
        """
        try:
            with self.log_path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row, allow_nan=False) + "\n")
        except OSError as error:
            raise self.unwritten("the log", error) from error

    def unwritten(self, what: str, error: Exception) -> SurgeryError:
        """The error for a full disk; earlier checkpoints are not changed."""
        last = self.last_complete()
        kept = (
            f"{last.relative_to(self.output.parent)} is complete, and --resume continues from it."
            if last
            else "No checkpoint had been saved yet."
        )
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        free = format_size(shutil.disk_usage(self.output.parent).free)
        return SurgeryError(
            f"{what} could not be written: {reason} ({free} free)",
            hint=f"Free some space. {kept}",
        )

    def remove(self) -> None:
        """Delete the folder, once the output is complete."""
        shutil.rmtree(self.path, ignore_errors=True)

    def _trim_log(self, step: int) -> None:
        kept = [row for row in self.rows() if row["step"] <= step and not (step == 0 and "loss" in row)]
        text = "".join(json.dumps(row, allow_nan=False) + "\n" for row in kept)
        temporary = self.log_path.with_suffix(".new")
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(self.log_path)

    def _complete(self) -> list[Path]:
        return [path for path in self._checkpoints() if (path / MARKER).is_file()]

    def _checkpoints(self) -> list[Path]:
        stages = {0: self.path, **{_number(path, _STAGE) - 1: path for path in self.path.glob(f"{_STAGE}*")}}
        numbered = [
            (stage, _number(path, _PREFIX), path)
            for stage, folder in stages.items()
            for path in folder.glob(f"{_PREFIX}*")
        ]
        return [path for stage, step, path in sorted(numbered) if stage >= 0 and step >= 0]

    def _compare(self, run: dict[str, Any], now: Mapping[str, Any], identity: Mapping[str, str]) -> None:
        before = run.get("recipe", {})
        changed = [key for key in now if key not in _FREE and before.get(key) != now[key]]
        if changed:
            raise UsageError(
                f"the interrupted run had another recipe: {', '.join(changed)} differ",
                hint="Resume with the same recipe and --set, or start over with --force.",
            )
        # A step is the rows of all processes, and each keeps its own random state.
        if run.get("processes", 1) != process_count():
            raise UsageError(
                f"the interrupted run had {run.get('processes', 1)} process(es), and this run has {process_count()}",
                hint="Resume with the same number of processes, or start over with --force.",
            )
        other = [what for what, value in identity.items() if run.get("identity", {}).get(what) != value]
        if other:
            raise UsageError(
                f"the interrupted run had another {' and '.join(other)}: the files have changed",
                hint="Restore the files, or start over with --force.",
            )


def _number(path: Path, prefix: str) -> int:
    number = path.name.removeprefix(prefix)
    return int(number) if number.isdecimal() else -1


def _delete(checkpoint: Path) -> None:
    # The marker first: half a checkpoint must not look like one.
    (checkpoint / MARKER).unlink()
    shutil.rmtree(checkpoint)
